"""The paired t-interval of a difference, and the word for what it says. Pure: numbers in, numbers out.

    d_s = a_s − b_s over the seeds s that both have;  d̄ ± t(0.975, n − 1) · sd(d) / √n

"A beats B" holds if the interval lies above 0; does not if it lies below the smallest difference that is claimed; else
it cannot be told, and the half-width is the difference that could have been detected. The interval is over seeds
(head, data order, dropout, random choices) on one test set: another test set is another matter. Intervals of several
comparisons are not adjusted for their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

HOLDS, DOES_NOT, CANNOT_TELL = "holds", "does not", "cannot tell"


@dataclass(frozen=True)
class Paired:
    """Mean difference with its interval; `low`, `high` and `detectable` are None where there is no interval."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    detectable: float | None
    verdict: str


def paired(a: Mapping[int, float], b: Mapping[int, float], *, least: float = 0.0, level: float = 0.95) -> Paired | None:
    """a − b, seed by seed; None where they share no seed.

    Args:
        a, b: seed → score. Seeds that only one of them has are left out.
        least: the smallest difference that the claim "a beats b" speaks of, 0 or more.
        level: of the interval.

    One seed gives no interval. Nor do equal differences on every seed: a spread of exactly 0 is an accident of few
    examples or few seeds (or a and b are one thing), and an interval of no width would claim certainty.

    >>> paired({0: 0.75, 1: 0.5, 2: 0.75}, {0: 0.25, 1: 0.25, 2: 0.25}).verdict  # differences 0.5, 0.25, 0.5
    'holds'
    """
    from scipy.stats import t

    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    n = len(differences)
    if not n:
        return None
    mean = fmean(differences)
    sd = stdev(differences) if n > 1 else None
    if sd is None or sd <= 1e-12:  # what floating point leaves of equal differences
        return Paired(n, mean, sd, None, None, None, CANNOT_TELL)
    half = float(t.ppf(0.5 + level / 2, n - 1)) * sd / math.sqrt(n)
    low, high = mean - half, mean + half
    verdict = HOLDS if low > 0 else DOES_NOT if high < least else CANNOT_TELL
    return Paired(n, mean, sd, low, high, half, verdict)
