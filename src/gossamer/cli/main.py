"""The command line: one verb a file. Exit status 0 done, 1 failure, 2 wrong use."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from gossamer.cli.examples import EXAMPLES, GROUPS
from gossamer.errors import BadPlan, GossamerError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; the installed `gossamer` calls this."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    try:
        from cyclopts import App, CycloptsError
        from rich.console import Console
        from rich.markup import escape
        from safetensors import SafetensorError
    except ImportError as error:
        print(
            f"gossamer: the command line needs {error.name}; install it with: pip install 'gossamer[cli]'",
            file=sys.stderr,
        )
        return 1
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app = App(
        name="gossamer",
        help="Sparse, composable fine-tuning: a fine-tuning is a tiny, exact difference on a frozen, shared base.",
        version=version("gossamer"),
        help_format="plaintext",
        result_action="return_value",
    )
    groups: dict[str, App] = {}
    for verb, examples in EXAMPLES.items():
        epilogue = "\n".join(["Examples:", *(f"  {example}" for example in examples)])
        *group, name = verb.split()  # `analyze interference` is gossamer.cli.analyze.interference.interference
        into = app
        for word in group:
            if word not in groups:
                groups[word] = App(name=word, help=GROUPS[word], help_format="plaintext")
                app.command(groups[word])
            into = groups[word]
        function = getattr(import_module(f"gossamer.cli.{verb.replace(' ', '.')}"), name)
        into.command(function, name=name, help_epilogue=epilogue)
    complain = Console(stderr=True, soft_wrap=True)
    try:
        app(arguments, exit_on_error=False, print_error=True, error_console=complain)
    except CycloptsError:
        return 2
    except GossamerError as error:
        complain.print(f"[bold red]gossamer:[/] {escape(str(error))}")
        return 2 if isinstance(error, BadPlan) else 1
    except (OSError, SafetensorError) as error:
        complain.print(f"[bold red]gossamer:[/] {escape(str(error))}; is there space, and may it be written?")
        return 1
    except KeyboardInterrupt:
        complain.print("stopped; go on with the same command (fit: with --resume)")
        return 130
    return 0
