"""gossamer methods: every method, a line each."""

from __future__ import annotations

from rich.markup import escape

from gossamer.cli.output import Flag, console, emit
from gossamer.train.plan import described
from gossamer.train.plan import methods as rows

GROUPS = ["random", "rule-based", "projection-based", "added modules", "full"]


def methods(*, json: Flag = False) -> None:
    """List the methods: what each trains, its default rates, its options.

    Parameters
    ----------
    json
        Print the list as JSON.
    """
    found = sorted(rows().values(), key=lambda row: GROUPS.index(row.group))
    if json:
        emit([
            {
                "method": row.name,
                "group": row.group,
                "what": row.line,
                "rates": [phase.lr for phase in row.fits],
                "options": row.defaults,
                "values": {name: list(value) for name, value in row.options.items() if isinstance(value, tuple)},
                "twin": row.twin or None,
                "source": row.source,
            }
            for row in found
        ])  # fmt: skip
        return
    for group in dict.fromkeys(row.group for row in found):
        console.print(f"[bold]{group}[/]{' (reference)' if group == 'full' else ''}")
        for row in (row for row in found if row.group == group):
            rates = " then ".join(f"{phase.lr:g}" for phase in row.fits)
            twin = f"; same choice as {row.twin}" if row.twin else ""
            options = f"  [dim]{escape(' '.join(described(row)))}[/]" if row.options else ""
            console.print(f"  {row.name:<13} {escape(row.line)} (rate {rates}{twin}){options}", highlight=False)
