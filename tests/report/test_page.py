"""The page stands alone, says everything, and says it safely."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments.report import page
from experiments.report.claims import Claim, Declaration
from experiments.report.page import Picture, Report, Section, render, tally, write_report
from experiments.report.statistics import estimate
from experiments.report.tables import Table
from experiments.report.verdicts import Judged
from spectral_jax.plots import training_curves

HOSTILE = "<script>alert('x')</script> & \"quotes\""


def judged(verdict, *, number=0, origin="our question", family="primary", citation=""):
    claim = Claim(
        f"{verdict}-{number}".lower().replace(" ", "-"), f"claim {number} {HOSTILE}", "a paper",
        origin, "direction", direction=1, smallest_effect=0.5, largest_n=20, family=family,
        citation=citation, command=f"python {HOSTILE}" if origin == "our reference" else "",
    )  # fmt: skip
    found = None if verdict in page.NOT_RUN else estimate(np.array([0.5, 1.0, 1.5]))
    return Judged(claim, verdict, found, note=f"a note {HOSTILE}")


EVERY = [judged(verdict) for verdict in page.VERDICTS]
EVERY += [judged("NUMBER MISS", number=1, origin="our reference")]
EVERY += [judged("ESTIMATE", number=2, family="control")]
EVERY += [judged("SUPPORTED", number=3, origin="published", citation=f"quoted {HOSTILE}")]


def report(claims=EVERY, figures=("one", "two")):
    curve = training_curves({"none": (np.arange(3), np.arange(6.0).reshape(3, 2))}, ylabel="loss")
    pictures = {name: Picture(curve, f"curve {name} {HOSTILE}") for name in figures}
    section = Section("Results", "results", pictures, [Table("all", [{"arm": HOSTILE}])])
    return Report(
        "A title", [f"Learned {HOSTILE}.", "And more."], claims,
        Declaration("f00" * 21 + "d", (f"x: changed {HOSTILE}",)), [section],
        Table("results", [{"arm": "none"}]), {"commit": HOSTILE},
    )  # fmt: skip


class Page(HTMLParser):
    """Every tag with its attributes, and what stands inside ``<details>``."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.folded, self._depth = [], set(), 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._depth += tag == "details"
        if self._depth and "id" in attributes:
            self.folded.add(attributes["id"])

    def handle_endtag(self, tag):
        self._depth -= tag == "details"


@pytest.fixture(scope="module")
def html():
    return render(report())


@pytest.fixture(scope="module")
def parsed(html):
    return Page(html)


def test_it_begins_with_what_was_learned(html):
    first = re.search("<p.*?>(.*?)</p>", html).group(1)
    assert first.startswith("Learned ") and first.endswith(" And more.")


def test_every_claim_and_verdict_is_on_it(html, parsed):
    assert {attrs.get("id") for _, attrs in parsed.tags} >= {one.id for one in EVERY}
    for verdict in page.VERDICTS:
        assert f">{verdict}</span>" in html


def test_what_was_not_decided_or_not_run_folds_away(parsed):
    open_verdicts = {"NUMBER MATCH", "NUMBER MISS", "REPRODUCED", "NOT REPRODUCED", "SUPPORTED",
                     "NO EFFECT", "CONTRADICTED"}  # fmt: skip
    for one in EVERY:
        assert (one.id in parsed.folded) == (one.verdict not in open_verdicts), one.id


def test_checks_of_our_own_numbers_have_a_table_of_their_own(html):
    checks = html.partition("Checks against our own references")[2]
    assert "id='number-miss-1'" in checks and "id='number-miss-0'" not in checks
    assert "<code>python &lt;script&gt;" in checks


def test_a_published_claim_is_quoted(html):
    assert "<q>quoted &lt;script&gt;" in html


def test_it_names_the_hash_of_the_claims_and_what_changed(html):
    assert "f00f00" in html and "changed since the first run: 1" in html


def test_a_preset_that_decides_nothing_says_so():
    assert "This preset decides none of them" in render(report([judged("ESTIMATE")]))


def test_it_needs_nothing_from_outside(html, parsed):
    for tag, attrs in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert not attrs.get(name, "#").startswith(("http:", "https:", "//"))
    assert "@import" not in html


def test_what_people_wrote_is_text_not_markup(html):
    # Per claim a text and a note; the quotation, the command; lead, change, table, commit, figures.
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") >= 2 * len(EVERY) + 2 + 6


def test_no_two_elements_share_an_id(parsed):
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_references_inside_the_figures_resolve(html, parsed):
    ids = {attrs["id"] for _, attrs in parsed.tags if "id" in attrs}
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= ids
    assert set(re.findall(r'href="#([^"]+)"', html)) <= ids


def test_figures_have_words_for_those_who_cannot_see_them(parsed):
    labels = [attrs["aria-label"] for tag, attrs in parsed.tags if tag == "svg"]
    assert [label[:7] for label in labels] == ["curve o", "curve t"]


def test_the_same_input_gives_the_same_bytes(html):
    assert render(report()) == html


def test_only_a_missed_number_fails_the_check(tmp_path, capsys):
    missed = [one for one in EVERY if one.verdict != "NUMBER MISS"]
    assert write_report(report(missed, ()), tmp_path) == 0
    assert write_report(report(EVERY, ["one"]), tmp_path) == 3
    shown = capsys.readouterr()
    assert "f00f00" in shown.err and "report.html" in shown.err
    names = {path.name for path in tmp_path.iterdir()}
    tables = {f"{stem}.{form}" for stem in ("claims", "results") for form in ("csv", "md", "tex")}
    assert names == {"report.html", "figures", *tables}
    assert (tmp_path / "figures" / "results-one.svg").is_file()


def test_pages_of_a_section_stand_beside_the_report_which_links_to_them(tmp_path):
    section = Section("Results", "results", pages={"what moves": "<p>film</p>"})
    write_report(dataclasses.replace(report((), ()), sections=[section]), tmp_path)
    links = [attrs["href"] for tag, attrs in Page((tmp_path / "report.html").read_text()).tags
             if tag == "a"]  # fmt: skip
    assert links == ["results-what-moves.html"]
    assert (tmp_path / links[0]).read_text() == "<p>film</p>"


def test_the_terminal_shows_what_was_run_and_counts_the_rest(tmp_path, capsys):
    write_report(report([judged("SUPPORTED"), judged("NOT RUN", number=7)], ()), tmp_path)
    shown = capsys.readouterr().out
    assert "claim 0" in shown and "claim 7" not in shown and "1 further claims" in shown


def test_programs_get_json(tmp_path, capsys):
    write_report(report(EVERY, ()), tmp_path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in told["claims"]] == [one.id for one in EVERY]
    assert told["claims_sha256"].startswith("f00") and told["results"] == [{"arm": "none"}]


def test_the_tally_counts_by_verdict():
    assert tally([judged("SUPPORTED"), judged("NOT RUN")]) == (
        "Of 2 claims: 1 SUPPORTED, 1 NOT RUN."
    )
