"""linear: Σ c_i · δ_i, any coefficients: sums, differences, analogies a − b + c (Ilharco et al. 2023).

Summed in float64 over the union of what the parts touch, rounded once. Low-rank parts stay low-rank: their ranks stack.
"""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.compose.parts import assemble, by_name, check, dtype_of, keeper, summed
from gossamer.delta.delta import Delta


def linear(
    terms: Sequence[tuple[float, Delta]],
    *,
    head: int | None = None,
    values: str | None = None,
    expression: str | None = None,
) -> Delta:
    """Σ coefficient · delta, coalesced.

    Args:
        terms: (coefficient, delta) pairs; a delta may come several times.
        head: position of the delta whose task head is kept; needed only where two heads differ.
        values: "bf16" or "fp32", what the values are rounded to; default fp32, a lone delta's as they are.
        expression: what the terms were written as, for the provenance.

    Raises:
        BadPlan: no terms, values that are not finite, an unknown `values`.
        NotLinear: a coefficient is not a finite number, or not 1 for a delta that adds modules.
        BaseMismatch: the deltas are of different bases.
        Clash: two heads differ and `head` is not given.
    """
    coefficients, deltas = [c for c, _ in terms], [d for _, d in terms]
    check(deltas, "linear")
    dtype = dtype_of(values)
    scaled = [c * d for c, d in terms]  # the algebra refuses what is not finite, and grafts that are scaled
    found = {name: tuple(t for some in parts for t in some) for name, parts in by_name(scaled).items()}
    merged = Delta(found)  # equal patches once, and in an order that does not depend on the writing
    how = (
        {"method": "linear"}
        | ({"expression": expression} if expression else {})
        | ({"values": values} if values else {})
    )
    sums = {name: summed(parts, dtype) for name, parts in merged.terms.items()}
    return assemble(sums, list(terms), keeper(deltas, head, coefficients), how)
