"""Episodes: sizes, no example twice, seeds, both samplings, and clear errors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import BadData, BadPlan
from gossamer.prime.episodes import Episodes, one_task
from gossamer.tasks.readers import read


def made(sizes: dict[str, int], **settings: Any) -> Episodes:
    return Episodes({n: [(n, i) for i in range(size)] for n, size in sizes.items()}, list, **settings)


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 5), st.integers(0, 99), st.integers(0, 9)
)
def test_an_episode_is_of_one_task_and_has_no_example_twice(
    support: int, query: int, inner: int, tasks: int, seed: int, step: int
) -> None:
    settings = {"support": support, "query": query, "inner_steps": inner, "tasks": tasks, "seed": seed}
    drawn = made({"a": 16, "b": 20, "c": 30}, **settings).at(step)
    assert len(drawn) == tasks
    for episode in drawn:
        every = [example for batch in (*episode.support, episode.query) for example in batch]
        assert [len(batch) for batch in episode.support] == [support] * inner and len(episode.query) == query
        assert len(set(every)) == len(every) == support * inner + query
        assert {name for name, _ in every} == {episode.task}
    assert made({"a": 16, "b": 20, "c": 30}, **settings).at(step) == drawn


def test_balanced_and_proportional() -> None:
    sizes = {"small": 30, "large": 270}
    settings: dict[str, Any] = {"support": 2, "query": 2, "inner_steps": 1, "tasks": 3}
    counts = {}
    for sampling in ("balanced", "proportional"):
        episodes = made(sizes, sampling=sampling, **settings)
        counts[sampling] = Counter(e.task for step in range(200) for e in episodes.at(step))
    assert counts["balanced"] == {"small": 300, "large": 300}
    assert 0.85 < counts["proportional"]["large"] / 600 < 0.95


def test_errors() -> None:
    with pytest.raises(BadData, match="task 'b' has 21 examples, and an episode takes 22"):
        made({"a": 30, "b": 21}, support=4, query=2)
    with pytest.raises(BadData, match="at least one source"):
        made({})
    with pytest.raises(BadPlan, match="sampling='x'"):
        made({"a": 100}, sampling="x")
    with pytest.raises(BadPlan, match="support=0"):
        made({"a": 100}, support=0)


def test_labels_must_agree(tmp_path: Any) -> None:
    for name, labels in (("a", "xy"), ("b", "xz")):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"some words,{label}\n" for label in labels * 3))
    tables = {name: read(str(tmp_path / f"{name}.csv")) for name in "ab"}
    with pytest.raises(BadData, match=r"'a' the labels x,y; 'b' the labels x,z.*--heads per-task"):
        one_task("classify", tables)
    assert one_task("classify", {"a": tables["a"]}).labels == ("x", "y")  # type: ignore[attr-defined]
