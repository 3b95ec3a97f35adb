"""The page of a study: one file, safe against what cells and files say, with every part; pictures of every shape of grid."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

from gossamer.study.page import html, markdown
from gossamer.study.spec import Claim
from gossamer.study.tabulate import tabulated
from gossamer.study.wanted import Planned, Wanted
from tests.study.test_verdict import BEATS, SCORES, cell, sides, study


class Sources(HTMLParser):
    """What a page would fetch, and the tags that it opens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_is_one_safe_file() -> None:
    failed = cell(0.5, 3, method="random", density=0.5)
    cells = [
        c
        for d in (0.1, 0.5)
        for c in sides(list(SCORES[:3]), [v - 0.1 * i for i, v in enumerate(SCORES[:3])], density=d)
    ]
    cells.append(
        Wanted(
            "f",
            failed.axes,
            failed.of,
            None,
            record={"error": "<script>alert(1)</script>", "versions": {}, "machine": {}},
        )
    )
    asked = replace(study(BEATS), claim=Claim(id="C0", words="a < b & <b>c</b>", source="Nobody 1999"), profile="quick")
    plan = Planned(cells, 0)
    facts = tabulated(asked, plan, ["a remark"])
    text = html(asked, facts, plan, "gossamer study run s.yaml --data DATA --out o")
    found = Sources(text)
    assert not [where for where in found.fetched if not where.startswith("#")], "nothing is fetched"
    assert "script" not in found.tags and "svg" in found.tags and found.tags.count("table") == 3
    for part in (
        "a &lt; b &amp; &lt;b&gt;c",
        "cannot tell",
        "Nobody 1999",
        "random beats full",
        "a remark",
        "--data DATA",
        "failed",
    ):
        assert part in text, part
    assert html(asked, facts, plan, "c") == html(asked, facts, plan, "c"), "the same facts give the same page"
    told = markdown(asked, facts, plan, "gossamer study run s.yaml")
    for part in ("# C0: a < b", "**On this base: cannot tell**", "| random |", "## Failed cells", "* a remark"):
        assert part in told, part


def test_pages_of_other_shapes() -> None:
    plain = Planned([cell(v, i) for i, v in enumerate(SCORES)], 0)
    assert "C0" not in html(study(), tabulated(study(), plain, []), plain, "c")
    empty = Planned([cell(None, 0, method=m) for m in ("random", "full")], 0)
    assert "nothing to compare" in html(study(BEATS), tabulated(study(BEATS), empty, []), empty, "c")
    lists = [replace(c, record={**(c.record or {}), "lists": {"rsa": [1.0, 0.9]}}) for c in plain.cells]
    shown = Planned(lists, 0)
    assert "rsa: mean over seeds" in html(study(), tabulated(study(), shown, []), shown, "c")
