"""One table says the same in every form, and what people wrote is text in all of them."""

import csv
import io
import re

import numpy as np
import pytest

from experiments.report.results import merge, of_arrays
from experiments.report.tables import Table, cell, number, of_results

TABLE = Table("100 % of a_b", [{"arm": "l1|l2", "x": "1.0 ± 0.5"}, {"arm": "<b> & co", "y": "2"}])


def test_columns_are_those_of_all_rows():
    assert TABLE.columns == ["arm", "x", "y"]
    assert TABLE.lines() == [["l1|l2", "1.0 ± 0.5", ""], ["<b> & co", "", "2"]]


def test_plain_text_is_aligned():
    assert TABLE.text().splitlines() == [
        "arm       x          y",
        "l1|l2     1.0 ± 0.5",
        "<b> & co             2",
    ]


def test_markdown_escapes_its_bars():
    assert TABLE.markdown().splitlines() == [
        "| arm | x | y |",
        "| --- | --- | --- |",
        "| l1\\|l2 | 1.0 ± 0.5 |  |",
        "| <b> & co |  | 2 |",
    ]


def test_csv_reads_back():
    assert list(csv.reader(io.StringIO(TABLE.csv(), newline=""))) == [TABLE.columns, *TABLE.lines()]


def test_latex_is_a_table_of_booktabs():
    assert TABLE.latex().splitlines() == [
        r"\begin{table}",
        r"\caption{100 \% of a\_b}",
        r"\begin{tabular}{lll}",
        r"\toprule",
        r"arm & x & y \\",
        r"\midrule",
        r"l1|l2 & 1.0 $\pm$ 0.5 &  \\",
        r"$<$b$>$ \& co &  & 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_html_escapes_markup():
    assert "&lt;b&gt; &amp; co" in TABLE.html() and "<b>" not in TABLE.html()
    assert Table("none", []).html() == ""


def test_what_stands_out_does_so_in_every_form_that_can():
    table = Table("", [{"arm": "l1", "x": "1 ± 2"}, {"arm": "l2", "x": "1 ± 2"}], bold=[(1, "x")])
    assert "| l1 | 1 ± 2 |\n| l2 | **1 ± 2** |" in table.markdown()
    assert "l1 & 1 $\\pm$ 2 \\\\\nl2 & \\textbf{1 $\\pm$ 2} \\\\" in table.latex()
    assert "<td>1 ± 2</td>" in table.html() and "<td><strong>1 ± 2</strong></td>" in table.html()
    assert table.csv().count("1 ± 2") == table.text().count("1 ± 2") == 2


def test_a_person_at_a_terminal_sees_it_wrapped_to_the_window(monkeypatch):
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    shown = Table("", [{"claim": "a claim of many words that go on and on"}]).terminal()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= 30 and len(lines) > 2


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


def test_a_pipe_gets_plain_text(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert TABLE.terminal() == TABLE.text()


def test_it_is_written_in_three_forms(tmp_path):
    TABLE.write(tmp_path / "t")
    Table("none", []).write(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.md", "t.tex"]
    assert (tmp_path / "t.tex").read_text() == TABLE.latex()


@pytest.mark.parametrize(
    "mean, half, shown",
    [
        (95.1234, 0.456, "95.12 ± 0.46"),
        (0.0012345, 0.000045, "0.001234 ± 0.000045"),
        (1234.5, 12.3, "1234 ± 12"),
        (-0.02, 1.1, "0.0 ± 1.1"),
        (522.3, 141.2, "522 ± 141"),
        (123456.0, 1234.0, "1.235e+05 ± 1.2e+03"),
        (35680.0, np.nan, "35680"),
        (0.33333333, 0.0, "0.3333"),
    ],
)
def test_two_digits_of_the_interval_say_how_many_of_the_mean_are_worth_printing(mean, half, shown):
    assert number(mean, half) == shown


def test_a_cell_is_a_mean_with_its_interval():
    assert cell(np.array([0.1, 0.2, 0.3, np.nan]), scale=100) == "20 ± 25"
    assert cell(None) == cell(np.array([np.nan])) == ""


def test_results_have_a_row_per_arm():
    results = merge([of_arrays("p", "a", {"m": [0.5, 0.5]}), of_arrays("q", "b", {"n": [1.0]})])
    columns = {"m (%)": ("m", 100.0), "n": ("n", 1.0)}
    assert of_results(results, columns).rows == [
        {"protocol": "p", "arm": "a", "m (%)": "50", "n": "", "seeds": "2"},
        {"protocol": "q", "arm": "b", "m (%)": "", "n": "1", "seeds": "1"},
    ]
    assert len(of_results(results, columns, protocols=["q"]).rows) == 1
