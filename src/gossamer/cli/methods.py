"""gossamer methods: every method, a line each."""

from __future__ import annotations

from gossamer.cli.output import Flag, console, emit
from gossamer.train.plan import methods as rows


def methods(*, json: Flag = False) -> None:
    """List the methods: what each trains, its default rates, its options.

    Parameters
    ----------
    json
        Print the list as JSON.
    """
    facts = [
        {
            "method": row.name,
            "group": row.group,
            "what": row.line,
            "rates": [phase.lr for phase in row.fits],
            "options": row.options,
            "source": row.source,
        }
        for row in rows().values()
    ]
    if json:
        emit(facts)
        return
    for group in dict.fromkeys(fact["group"] for fact in facts):
        console.print(f"[bold]{group}[/]")
        for fact in (fact for fact in facts if fact["group"] == group):
            rates = " then ".join(f"{rate:g}" for rate in fact["rates"])
            console.print(f"  {fact['method']:<10} {fact['what']} (rate {rates})", highlight=False)
