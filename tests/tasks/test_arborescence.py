"""Decoding against every tree there is."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.tasks.arborescence import best_tree, decode


@cache
def every_tree(n: int) -> np.ndarray:
    """All heads [trees, n] with one root word and a path to ROOT from each word, by definition."""

    def arrives(heads: tuple[int, ...], word: int) -> bool:
        for _ in range(n):
            word = heads[word - 1] if word else 0
        return word == 0

    every = product(range(n + 1), repeat=n)
    return np.array([h for h in every if h.count(0) == 1 and all(arrives(h, w) for w in range(1, n + 1))])


def without_own(scores: np.ndarray) -> np.ndarray:
    n = len(scores)
    scores[np.arange(n), np.arange(n) + 1] = -np.inf
    return scores


def total(scores: np.ndarray, heads: np.ndarray) -> np.ndarray:
    return scores[np.arange(len(scores)), heads].sum(-1)


def test_the_number_of_trees_is_cayleys() -> None:
    assert [len(every_tree(n)) for n in range(1, 6)] == [n ** (n - 1) for n in range(1, 6)]


@given(st.integers(1, 5), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e-3, 1e3]), st.booleans())
def test_the_tree_is_the_best_of_all(n: int, seed: int, scale: float, lure: bool) -> None:
    scores = without_own(np.random.default_rng(seed).normal(size=(n, n + 1)) * scale)
    if lure:
        scores[:, 0] += 5 * scale  # every word would be a root word
    expected = every_tree(n)[np.argmax([total(scores, heads) for heads in every_tree(n)])]
    assert best_tree(scores).tolist() == expected.tolist()
    assert decode(scores[None].astype(np.float64), np.array([n]))[0].tolist() == expected.tolist()


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_batch_is_decoded_as_its_sentences(seed: int, tree: bool) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, size=4)
    n = int(lengths.max())
    batch = np.full((4, n, n + 1), -np.inf, np.float32)
    batch[:, :, 0] = 0.0
    for i, m in enumerate(lengths):
        batch[i, :m, : m + 1] = without_own(rng.normal(size=(m, m + 1)))
    heads = decode(batch, lengths, tree=tree)
    for row, scores, m in zip(heads, batch, lengths, strict=True):
        alone = scores[:m, : m + 1]
        assert row[:m].tolist() == (best_tree(alone) if tree else alone.argmax(-1)).tolist()
        assert not row[m:].any()
        assert not tree or (row[:m] == 0).sum() == 1


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_scores_of_a_broken_model_still_give_a_tree(broken: float) -> None:
    scores = np.full((1, 4, 5), broken)
    assert decode(scores, np.array([4]))[0].tolist() in every_tree(4).tolist()
    scores[0, 1] = 1.0
    assert decode(scores, np.array([4]))[0].tolist() in every_tree(4).tolist()


def test_long_sentences_of_large_scores() -> None:
    rng = np.random.default_rng(0)
    scores = without_own(rng.normal(size=(300, 301)) * 100).astype(np.float32)
    heads = decode(scores[None], np.array([300]))[0]
    assert (heads == 0).sum() == 1
    up = np.concatenate([[0], heads])
    for _ in range(9):
        up = up[up]
    assert not up.any()
