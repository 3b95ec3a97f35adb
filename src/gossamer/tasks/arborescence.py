"""From scores of arcs to one tree a sentence: the maximum spanning arborescence with a single root word.

A tree is a head for every word such that all paths lead to ROOT (0) and ROOT is the head of exactly one word. The best head
of each word on its own is looked at first: where that is a tree, no tree scores more. The others are solved by the algorithm of
Chu, Liu and Edmonds (`ufal.chu_liu_edmonds`), after a penalty on each arc of ROOT that is larger than all other arcs together
can differ by: the best arborescence then has as few root words as can be, one, and is the best of those.
"""

from __future__ import annotations

import numpy as np


def decode(scores: np.ndarray, lengths: np.ndarray, *, tree: bool = True) -> np.ndarray:
    """Heads int64 [b, n] of arc scores [b, n, n + 1]; 0 is ROOT, and the heads of padding.

    Args:
        scores: of word i + 1 having head j; -inf for arcs that cannot be (its own, and those from padding).
        lengths: the number of words of each sentence, [b].
        tree: False takes the best head of each word, whether or not that gives a tree.

    >>> greedy_is_a_cycle = np.array([[[1.0, -np.inf, 5.0], [0.0, 5.0, -np.inf]]])
    >>> decode(greedy_is_a_cycle, np.array([2])), decode(greedy_is_a_cycle, np.array([2]), tree=False)
    (array([[0, 1]]), array([[2, 1]]))
    """
    within = np.arange(scores.shape[1]) < lengths[:, None]
    heads = np.where(within, scores.argmax(-1), 0)
    if tree:
        for i in np.flatnonzero(~_trees(heads, within)):
            n = int(lengths[i])
            heads[i, :n] = best_tree(scores[i, :n, : n + 1])
    return heads


def best_tree(scores: np.ndarray) -> np.ndarray:
    """Heads int64 [n] of the single-root arborescence with the largest sum of scores [n, n + 1]."""
    from ufal.chu_liu_edmonds import chu_liu_edmonds  # type: ignore[attr-defined]

    n = len(scores)
    usable = np.isfinite(scores)
    known = scores[usable].astype(np.float64)
    spread = float(np.ptp(known)) if known.size else 0.0
    worst = float(known.min(initial=0.0)) - (n + 1) * (spread + 1)  # NaN of a diverged model: a tree all the same
    matrix = np.full((n + 1, n + 1), worst)  # row i: the scores of the heads of i
    matrix[1:] = np.where(usable, scores, worst)
    matrix[1:, 0] -= n * float(np.ptp(matrix[1:])) + 1
    heads, _ = chu_liu_edmonds(matrix)
    return np.asarray(heads[1:], dtype=np.int64)


def _trees(heads: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Whether each row of heads [b, n] is a tree with one root word, bool [b]."""
    up = np.pad(heads, ((0, 0), (1, 0)))
    for _ in range(heads.shape[1].bit_length()):  # each time twice as far
        up = np.take_along_axis(up, up, 1)
    return (up == 0).all(1) & (((heads == 0) & within).sum(1) == 1)
