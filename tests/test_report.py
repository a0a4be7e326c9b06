"""The page stands alone, says everything, and says it safely."""

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments.claims import VERDICTS, Judged
from experiments.report import Picture, Section, Table, print_claims, render, write_table
from spectral_jax.plots import training_curves

HOSTILE = "<script>alert('x')</script> & \"quotes\""


def judged(number, verdict):
    return Judged(
        id=f"claim-{number}",
        text=f"claim {number} {HOSTILE}",
        published="1 ± 0.1",
        source="arXiv 2003.00992",
        origin="published",
        ours="1.0 (n=5)",
        verdict=verdict,
        note="a note",
    )


CLAIMS = [judged(number, verdict) for number, verdict in enumerate(VERDICTS)]


def page():
    steps, values = np.arange(3), np.arange(6.0).reshape(3, 2)
    pictures = [
        Picture(
            training_curves({"none": (steps, values)}, ylabel="loss"), f"curve {number} {HOSTILE}"
        )
        for number in range(2)
    ]
    section = Section("Results", figures=pictures, tables=[Table("all", [{"arm": HOSTILE}])])
    return render(
        "A title",
        summary="In short.",
        claims=CLAIMS,
        sections=[section],
        provenance={"commit": HOSTILE},
    )


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def html():
    return page()


def test_every_claim_and_verdict_is_on_it(html):
    rows = {attrs.get("id") for _, attrs in Tags(html).found}
    assert rows >= {claim.id for claim in CLAIMS}
    for verdict in VERDICTS:
        assert f">{verdict}</span>" in html


def test_it_needs_nothing_from_outside(html):
    for tag, attrs in Tags(html).found:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert not attrs.get(name, "#").startswith(("http:", "https:", "//"))
    assert "@import" not in html


def test_what_people_wrote_is_text_not_markup(html):
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") >= len(CLAIMS) + 3


def test_no_two_elements_share_an_id(html):
    ids = [attrs["id"] for _, attrs in Tags(html).found if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_references_inside_the_figures_resolve(html):
    ids = {attrs["id"] for _, attrs in Tags(html).found if "id" in attrs}
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= ids
    assert set(re.findall(r'href="#([^"]+)"', html)) <= ids


def test_figures_have_words_for_those_who_cannot_see_them(html):
    figures = [attrs for tag, attrs in Tags(html).found if tag == "svg"]
    assert all(figure["role"] == "img" for figure in figures)
    labels = [figure["aria-label"] for figure in figures]
    assert [label[:7] for label in labels] == ["curve 0", "curve 1"]


def test_the_same_input_gives_the_same_bytes(html):
    assert page() == html


def test_tables_are_files_too(tmp_path):
    rows = [{"a": "1|2", "b": "x"}, {"a": "3", "c": "y"}]
    write_table(tmp_path / "t", rows)
    with (tmp_path / "t.csv").open() as stream:
        assert list(csv.DictReader(stream)) == [
            {"a": "1|2", "b": "x", "c": ""},
            {"a": "3", "b": "", "c": "y"},
        ]
    assert (tmp_path / "t.md").read_text().splitlines()[0::2] == [
        "| a | b | c |",
        "| 1\\|2 | x |  |",
    ]


def test_the_terminal_shows_what_was_run_and_counts_the_rest(capsys):
    print_claims([judged(0, "MATCH"), judged(1, "NOT RUN"), judged(2, "NOT RUN")])
    shown = capsys.readouterr().out
    assert "MATCH" in shown and "claim 0" in shown
    assert "claim 1" not in shown and "2 further claims" in shown
