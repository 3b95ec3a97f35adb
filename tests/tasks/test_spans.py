"""spans: the schemes are told apart, become one, and what breaks them is an error with its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import BadData
from gossamer.tasks.spans import looks_like_spans, spans_of, to_iob2

Spans = list[tuple[str, int]]  # type and length; "O" for a word outside


def iob2(spans: Spans) -> list[str]:
    return [t for name, n in spans for t in (["O"] * n if name == "O" else [f"B-{name}", *[f"I-{name}"] * (n - 1)])]


def iob1(spans: Spans) -> list[str]:
    made, before = [], "O"
    for name, n in spans:
        first = "O" if name == "O" else f"B-{name}" if before == name else f"I-{name}"
        made += [first, *["O" if name == "O" else f"I-{name}"] * (n - 1)]
        before = name
    return made


def bioes(spans: Spans, single: str = "S", end: str = "E") -> list[str]:
    made = []
    for name, n in spans:
        whole = [f"B-{name}", *[f"I-{name}"] * (n - 2), f"{end}-{name}"] if n > 1 else [f"{single}-{name}"]
        made += ["O"] * n if name == "O" else whole
    return made


corpora = st.lists(
    st.lists(st.tuples(st.sampled_from(["O", "PER", "LOC", "B-x"]), st.integers(1, 4)), max_size=6), max_size=5
)


@given(corpora)
def test_every_scheme_becomes_iob2(corpus: list[Spans]) -> None:
    expected = [iob2(spans) for spans in corpus]
    for scheme in (iob2, iob1, bioes, lambda spans: bioes(spans, "U", "L")):
        for repair in (False, True):
            assert to_iob2([scheme(spans) for spans in corpus], repair=repair) == expected
    for spans, tags in zip(corpus, expected, strict=True):
        ends = [sum(n for _, n in spans[: i + 1]) for i in range(len(spans))]
        assert spans_of(tags) == [
            (name, end - n, end) for (name, n), end in zip(spans, ends, strict=True) if name != "O"
        ]


@given(st.lists(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y", "E-X", "S-X"]), max_size=6), max_size=4))
def test_repaired_tags_are_valid_and_keep_which_words_are_in_spans(tags: list[list[str]]) -> None:
    made = to_iob2(tags, repair=True)
    assert [[t == "O" or t[2:] for t in row] for row in made] == [[t == "O" or t[2:] for t in row] for row in tags]
    assert to_iob2(made) == made


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ([["B-X", "I-X"], ["B-X", "O", "I-X"]], r"row 2, word 3: I-X after O breaks IOB2"),
        ([["B-X", "I-X"], ["I-X"]], r"row 2, word 1: I-X at the sentence's start breaks IOB2"),
        ([["B-X", "I-Y", "O", "B-Y"]], r"row 1, word 2: I-Y after B-X breaks IOB2"),
        ([["I-X"], ["I-X", "O", "B-X"], ["I-X"]], r"row 2, word 3: B-X after O breaks IOB1"),
        ([["S-X", "B-X", "O"]], r"row 1, word 3: O after B-X breaks BIOES"),
        ([["O", "E-X"]], r"row 1, word 2: E-X after O breaks BIOES"),
        ([["B-X", "E-X", "I-X", "E-X"]], r"row 1, word 3: I-X after E-X breaks BIOES"),
        ([["S-X"], [], ["B-X"]], r"row 3, word 1: B-X at the sentence's end breaks BIOES"),
        ([["O", "B-X", "NOUN"]], r"row 1, word 3: 'NOUN' is no tag of a span"),
    ],
)
def test_broken_tags(tags: list[list[str]], says: str) -> None:
    with pytest.raises(BadData, match=says):
        to_iob2(tags)


def test_what_looks_like_spans() -> None:
    assert looks_like_spans(["O", "S-a", "B-b-c"])
    assert not looks_like_spans(["O"])  # as much a part of speech
    assert not looks_like_spans(["B", "I-X", "O"])
    assert not looks_like_spans(["NN", "O"])
    assert to_iob2([["I", "B", "O", "I"]]) == [["B-SPAN", "B-SPAN", "O", "B-SPAN"]]
