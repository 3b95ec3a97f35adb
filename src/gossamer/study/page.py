"""A study as one HTML page that needs no other file, and as Markdown: claim, rule, verdict, tables, pictures, command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from gossamer.errors import BadPlan
from gossamer.study.paired import DOES_NOT, HOLDS
from gossamer.study.pictures import pictures
from gossamer.study.report import Rows, markdown_table
from gossamer.study.spec import Study
from gossamer.study.tabulate import Facts, cost_table, difference_table, score_table
from gossamer.study.wanted import Planned, title

MEANING = (
    "“A beats B” holds if the 95 % t-interval of the paired difference lies above 0; it does not if it lies below the smallest "
    "difference that is claimed; else it cannot be told, and the difference that could have been seen is given. “Not worse” is "
    "the same rule with a margin; “in every cell” is of numbers in which there is no chance. Several comparisons must all hold."
)


def commands(study: Study, out: str) -> str:
    """What makes the results, and then the page, again."""
    profile = f" --profile {study.profile}" if study.profile else ""
    return f"gossamer study run {study.path} --data DATA --out {out}{profile}"


def html(study: Study, facts: Facts, plan: Planned, command: str) -> str:
    """The page. Raises BadPlan without Jinja2."""
    try:
        from jinja2 import Environment
    except ImportError:
        raise BadPlan("a report needs jinja2; install it with: pip install 'gossamer[cli]'") from None
    template = files("gossamer.study").joinpath("page.html").read_text("utf-8")
    word = facts["verdict"]["word"] if facts["verdict"] else ""
    page = Environment(autoescape=True, trim_blocks=True).from_string(template)
    failed = [{"name": title(one["axes"]), "error": one["error"]} for one in facts["failed"]]
    return page.render(
        title=heading(study), facts={**facts, "failed": failed}, command=command, tables=_tables(facts), pictures=pictures(facts),
        color={HOLDS: "#2a8f4a", DOES_NOT: "#b5382d"}.get(word, "#b58a00"), seen=_seen(facts), meaning=MEANING,
        state=_state(study, facts), made_on=made_on(plan),
    )  # fmt: skip


def markdown(study: Study, facts: Facts, plan: Planned, command: str) -> str:
    """The same without pictures."""
    parts = [f"# {heading(study)}"]
    if facts["claim"] and facts["claim"]["source"]:
        parts.append(f"The claim is of {facts['claim']['source']}.")
    if facts["verdict"]:
        rules = "\n".join(f"* {one['rule']}" for one in facts["verdict"]["compares"])
        parts.append(f"**On this base: {facts['verdict']['word']}**{_seen(facts)}")
        parts += [f"The rule, fixed in the file before the run:\n\n{rules}", MEANING]
    parts += [_state(study, facts), f"```bash\n{command}\n```"]
    for name, table in _tables(facts).items():
        parts += [f"## {name}", markdown_table(*table)]
    if facts["failed"]:
        parts += ["## Failed cells", "\n".join(f"* {title(one['axes'])}: {one['error']}" for one in facts["failed"])]
    parts += ["## Notes", "\n".join(f"* {note}" for note in [*facts["notes"], *made_on(plan)])]
    return "\n\n".join(parts) + "\n"


def heading(study: Study) -> str:
    """The claim in one line, or the file's name."""
    return f"{study.claim.id}: {study.claim.words}" if study.claim else study.path.stem


def made_on(plan: Planned) -> list[str]:
    """Machines and versions of the cells, with how many of each."""
    done = [one.record for one in plan.finals if one.record]
    machines = Counter(_machine(record["machine"]) for record in done)
    versions = Counter(", ".join(f"{n} {v}" for n, v in record["versions"].items()) for record in done)
    return [*_counted("machine", machines), *_counted("versions", versions)]


def _counted(what: str, found: Counter[str]) -> Sequence[str]:
    return [f"{what}: {name} ({count} cells)" for name, count in found.most_common()]


def _machine(facts: dict[str, Any]) -> str:
    memory = f", {facts['memory'] / 1e9:.0f} GB of memory" if facts.get("memory") else ""
    return f"{facts.get('kind')}, {facts.get('cpus')} cores, {facts.get('threads')} threads a cell{memory}, {facts.get('device')}"


def _tables(facts: Facts) -> dict[str, Rows]:
    made = {"Means over seeds": score_table(facts)}
    if facts["verdict"]:
        made["Paired differences"] = difference_table(facts)
    return {**made, "Cost": cost_table(facts)}


def _seen(facts: Facts) -> str:
    seen = facts["verdict"]["detectable"] if facts["verdict"] else None
    return "" if seen is None else f" (a difference of {seen:.4f} or more would have been seen)"


def _state(study: Study, facts: Facts) -> str:
    profile = f", profile {study.profile}" if study.profile else ""
    left = f", {facts['missing']} are missing" if facts["missing"] else ""
    failed = f", {len(facts['failed'])} failed" if facts["failed"] else ""
    return f"{study.path.name}{profile}: {facts['done']} of {facts['cells']} cells are done{failed}{left}."
