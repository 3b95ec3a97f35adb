"""Paired intervals against SciPy's own paired test, the four verdicts, and what is no interval."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from gossamer.study.paired import CANNOT_TELL, DOES_NOT, HOLDS, paired


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_is_scipys(n: int, level: float) -> None:
    rng = random.Random(n)
    a, b = ({seed: rng.gauss(mean, 0.02) for seed in range(n)} for mean in (0.71, 0.7))
    found = paired(a, b, level=level)
    reference = stats.ttest_rel(list(a.values()), list(b.values())).confidence_interval(level)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-12)
    assert found.detectable == pytest.approx((reference.high - reference.low) / 2)


def test_half_widths_that_the_claims_are_planned_with() -> None:
    for n, width in ((5, 3.1), (10, 1.8), (20, 1.2)):
        signs = [(-1) ** i for i in range(n)]
        scale = 2.5 / stats.tstd(signs)
        found = paired({i: s * scale for i, s in enumerate(signs)}, dict.fromkeys(range(n), 0.0))
        assert found is not None
        assert found.detectable is not None
        assert math.isclose(found.detectable, width, abs_tol=0.05)


def test_verdicts() -> None:
    base = {0: 0.5, 1: 0.51, 2: 0.49}
    for shift, least, verdict in (
        (0.2, 0.0, HOLDS),
        (-0.2, 0.0, DOES_NOT),
        (0.0, 0.0, CANNOT_TELL),
        (0.0, 0.5, DOES_NOT),  # far less than what was claimed
        (0.2, 0.5, HOLDS),
    ):
        a = {0: 0.5 + shift + 0.001, 1: 0.51 + shift, 2: 0.49 + shift - 0.001}
        found = paired(a, base, least=least)
        assert found is not None
        assert found.verdict == verdict, (shift, least)


def test_what_has_no_interval() -> None:
    one = paired({0: 0.5, 7: 1.0}, {0: 0.25, 8: 1.0})
    assert one is not None
    assert (one.n, one.mean, one.low, one.detectable, one.verdict) == (1, 0.25, None, None, CANNOT_TELL)
    same = paired({0: 0.3, 1: 0.4, 2: 0.5}, {0: 0.1, 1: 0.2, 2: 0.3})
    assert same is not None
    assert (same.low, same.verdict) == (None, CANNOT_TELL), "equal differences are no certainty"
    assert paired({0: 1.0}, {1: 1.0}) is None
