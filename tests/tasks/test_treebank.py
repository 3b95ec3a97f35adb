"""CoNLL-U: what is read is written back to the letter; what is wrong is named with its line."""

from __future__ import annotations

import random
from pathlib import Path

import conllu
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import BadData
from gossamer.tasks import treebank

TEXT = """# newpar
# sent_id = 1
# text = Vámonos al mar
#no space
# sent_id = 1
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No|A|A=b=c
1\tVamos\tir\tVERB\t_\tMood=Imp|Number=Plur\t0\troot\t0:root\t_
2\tnos\tnosotros\tPRON\t_\tCase=Acc\t1\tobj\t1:obj|8.1:x\t_
2.1\t_\tgo  on\t_\t_\t_\t_\t_\t1:conj\t_
2.2\tx\t_\t_\t_\t_\t_\t_\t1:conj\tCopyOf=1
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl:arg\t_\tGloss=a b

# sent_id = 2
0.1\t_\t_\t_\t_\t_\t_\t_\t_\t_
1\t1 000\t_\tNUM\t_\t_\t0\troot\t_\t_

"""


def test_the_table_holds_words_only_and_the_text_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(TEXT, "utf-8")
    table = treebank.read(path)
    assert table["words"] == [["Vamos", "nos", "a", "el", "mar"], ["1 000"]]
    assert table["heads"] == [[0, 1, 5, 5, 1], [0]]
    assert table["deprels"][0] == ["root", "obj", "case", "det", "obl:arg"]
    assert table["upos"] == [["VERB", "PRON", "ADP", "DET", "NOUN"], ["NUM"]]
    assert [sentence.line for sentence in table["_sentence"]] == [6, 17]
    assert treebank.write(table["_sentence"], table["heads"], table["deprels"]) == TEXT
    other = treebank.write(table["_sentence"], [[5, 1, 5, 5, 0], [0]], [["a", "b", "c", "d", "root"], ["root"]])
    assert (
        "5\tmar\tmar\tNOUN\t_\t_\t0\troot\t_\tGloss=a b\n" in other
        and "1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\tSpa" in other
    )


def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_bytes(b"\xef\xbb\xbf\n  \n" + TEXT.rstrip().replace("\n", "\r\n", 8).encode())
    table = treebank.read(path)
    assert treebank.write(table["_sentence"], table["heads"], table["deprels"]) == TEXT


def row(ident: object, head: object, form: str = "x", deprel: str = "dep", misc: str = "_") -> str:
    return "\t".join((str(ident), form, "_", "_", "_", "_", str(head), deprel, "_", misc))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ([row(1, 0), row(2, 3), row(3, 2)], 2, "cycle"),
        ([row(1, 0), row(2, 2)], 2, "cycle"),
        ([row(1, 2), row(2, 1)], 1, "cycle"),
        ([row(1, 0), row(2, 1), row(3, 0)], 3, "second root word, after that in line 1"),
        ([row(1, 0), row(2, 3)], 2, "head 3 is out of range"),
        ([row(1, 0), row(2, -1)], 2, "head -1 is out of range"),
        ([row(1, 0), row(2, "x")], 2, "head 'x' is no number"),
        ([row(1, 0), row(2, "_")], 2, "no head"),
        ([row("one", 0)], 1, "id 'one' is no id"),
        ([row("_", 0)], 1, "id '_' is no id"),
        ([row(1, 0), row(3, 1)], 2, "word 3 where word 2 is due"),
        ([row(1, 0), row(1, 0)], 2, "a blank line ends a sentence"),
        ([row(1, 0), row("1-2", "_"), row(2, 1)], 2, "id 1-2 where word 2 follows"),
        ([row("1-2", "_"), row(1, 0), row("2-3", "_"), row(2, 1), row(3, 1)], 3, "overlap"),
        ([row(1, 0), row("2-3", "_"), row(2, 1)], 3, "reaches to word 3"),
        ([row(1, 0), row("1.2", "_")], 2, "id 1.2"),
        ([row(1, 0), "2\tx\t1"], 2, "3 columns"),
        ([row(1, 0), row(2, 1, form="")], 2, "column form is empty"),
        ([row(1, 0), "# late", row(2, 1)], 2, "a comment after words"),
        (["# alone", "", row(1, 0)], 1, "without words"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: list[str], line: int, says: str) -> None:
    path = tmp_path / "bad.conllu"
    path.write_text("\n".join(text) + "\n")
    with pytest.raises(BadData, match=rf"bad\.conllu, line {line}: .*{says}"):
        treebank.read(path)


def test_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "latin.conllu"
    path.write_bytes(f"{row(1, 0)}\n{row(2, 1, form='é')}\n".encode("latin-1"))
    with pytest.raises(BadData, match=r"latin\.conllu, line 2"):
        treebank.read(path)


def test_a_file_without_heads_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plain.conllu"
    path.write_text(f"{row(1, '_')}\n{row(2, '_')}\n\n")
    assert treebank.read(path)["heads"] == [None]


def test_plain_words_become_sentences() -> None:
    text = treebank.write([treebank.plain(["a", "b"], 0)], [[2, 0]], [["det", "root"]])
    (found,) = conllu.parse(text)
    assert [(t["id"], t["form"], t["head"], t["deprel"]) for t in found] == [(1, "a", 2, "det"), (2, "b", 0, "root")]
    for word in ("", "a\tb", "a\n", " a"):
        with pytest.raises(BadData, match="row 4"):
            treebank.plain(["a", word], 3)


FORMS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")), min_size=1, max_size=5)


@st.composite
def sentences(draw: st.DrawFn) -> str:
    """Any comments, a random tree, multi-word tokens and empty nodes here and there."""
    n = draw(st.integers(1, 7))
    order = draw(st.permutations(range(1, n + 1)))
    heads = {order[0]: 0} | {word: order[draw(st.integers(0, i))] for i, word in enumerate(order[1:])}
    lines = [f"#{draw(FORMS)}" for _ in range(draw(st.integers(0, 3)))]
    covered = 0
    for word in range(1, n + 1):
        if word > covered and word < n and draw(st.booleans()):
            covered = draw(st.integers(word + 1, n))
            lines.append(row(f"{word}-{covered}", "_", draw(FORMS)))
        lines.append(row(word, heads[word], draw(FORMS), draw(FORMS), draw(FORMS)))
        lines += [row(f"{word}.{i + 1}", "_", draw(FORMS)) for i in range(draw(st.integers(0, 2)))]
    return "\n".join(lines) + "\n\n"


@given(st.lists(sentences(), min_size=1, max_size=4))
def test_read_then_write_gives_the_same_text(tmp_path: Path, parts: list[str]) -> None:
    path = tmp_path / "any.conllu"
    path.write_bytes("".join(parts).encode())
    table = treebank.read(path)
    assert treebank.write(table["_sentence"], table["heads"], table["deprels"]) == "".join(parts)
    library = [[(t["form"], t["head"]) for t in s if isinstance(t["id"], int)] for s in conllu.parse("".join(parts))]
    ours = [list(zip(*pair, strict=True)) for pair in zip(table["words"], table["heads"], strict=True)]
    assert ours == library


@given(st.integers(1, 7), st.integers(0, 10_000))
def test_cycles_are_those_that_walking_finds(n: int, seed: int) -> None:
    rng = random.Random(seed)
    heads = [rng.randint(0, n) for _ in range(n)]

    def lost(word: int) -> bool:
        for _ in range(n):
            word = heads[word - 1] if word else 0
        return word != 0

    assert (treebank._cycle(heads) is not None) == any(lost(word) for word in range(1, n + 1))
