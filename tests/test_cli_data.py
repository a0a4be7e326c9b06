"""``spectral-jax data``: a file of numbers, a paragraph, a picture."""

import json

import numpy as np
import pytest

from spectral_jax.analysis.data import read_table
from spectral_jax.cli import main

TABLE = np.random.default_rng(0).normal(size=(40, 3)) * [4, 2, 1]


@pytest.fixture
def table(tmp_path):
    """With a header, names of rows, an empty cell and a constant column."""
    lines = ["name;a;b;c;flat"]
    lines += [f"row {i};{a};{b};{c};1" for i, (a, b, c) in enumerate(TABLE)]
    lines[3] = "row 2;;0.5;NA;1"
    path = tmp_path / "table.csv"
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_is_read_with_its_header_its_holes_and_without_its_words(table):
    values, left_out = read_table(table)
    assert left_out == ("name",) and values.shape == (40, 4)
    np.testing.assert_array_equal(np.argwhere(np.isnan(values)), [[2, 0], [2, 2]])
    np.testing.assert_array_equal(values[3], [*TABLE[3], 1])


@pytest.mark.parametrize(
    "header, rows, left_out",
    [
        (",a,b", ["0,1,2", "1,3,4"], ("column 1",)),  # pandas
        (",0,1", ["0,1,2", "1,3,4"], ("column 1",)),  # pandas, of an array
        ('"","a","b"', ['"1",1,2', '"2",3,4'], ("column 1",)),  # R
        ("2019,total,", ["1,2,", "3,4,"], ("column 3",)),
        ("day\tid\t2020", ["1 May\t1\t2", "2 May\t3\t4"], ("day",)),
        ('"a, b";"c"', ["1;2", "3;4"], ()),
        ("1,2", ["3,4"], ()),
        ("x,1,2", ["y,3,4"], ("column 1",)),
    ],
)
def test_a_header_may_hold_numbers_and_rows_may_be_numbered(header, rows, left_out, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join([header, *rows]))
    found = read_table(path)
    np.testing.assert_array_equal(found.values, [[1, 2], [3, 4]])
    assert found.left_out == left_out


@pytest.mark.parametrize(
    "text, rows",
    [
        ("0,1,2\n5,1,2\n3,1,7\n", 2),  # pandas, of an array, without its index
        ("0,1\n0.5,1\n3,1\n", 2),
        ("0\n0.5\n3\n", 2),
        ("0,1\n1,1\n3,1\n", 3),  # rows of two whole numbers
        ("0\n1\n", 2),
        ("1,2,3\n5,1,2\n", 2),
        ("0,1,2.5\n5,1,2\n", 2),
        ("0.0,1.0,2.0\n3.0,4.0,5.0\n", 2),  # NumPy, of an array that counts
    ],
)
def test_a_first_line_that_counts_the_columns_is_a_header(text, rows, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text)
    assert read_table(path).values.shape[0] == rows


def test_the_command_says_and_draws(table, tmp_path, capsys):
    figure = tmp_path / "spectrum.png"
    assert main(["data", str(table), "--missing", "rows", "--figure", str(figure)]) == 0
    told = capsys.readouterr()
    assert "4, of which 1 constant" in told.out and "cannot know" in told.out
    assert "they hold words or number the rows: name" in told.err
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert main(["data", str(table), "--figure", str(figure)]) == 2
    assert "add --force" in capsys.readouterr().err


def test_json_holds_the_spectrum(tmp_path, capsys):
    path = tmp_path / "table.npy"
    np.save(path, TABLE)
    assert main(["data", str(path), "--uncentred", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = np.linalg.eigvalsh(TABLE.T @ TABLE / 40)[::-1]
    np.testing.assert_allclose(found["values"], expected, rtol=1e-5)
    assert found["rank"] == 3 and found["sloppiness"]["rank"] == 3


@pytest.mark.parametrize(
    "text, arguments, code, message",
    [
        (None, [], 4, "there is no such table"),
        ("", [], 2, "is empty"),
        ("a,b\n1,2\n3\n", [], 2, "row 3 has 1 cells, the first 2"),
        ("a,b\nx,y\n", [], 2, "no column of numbers"),
        ("1,2\n3,\n5,6\n", [], 2, "choose missing='rows' or 'pairwise'"),
        ("1,2\n3,4\n", ["--figure", "x.gif"], 2, "end it in .png, .svg or .pdf"),
    ],
)
def test_what_is_wrong_is_one_line(text, arguments, code, message, tmp_path, capsys):
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_text(text)
    assert main(["data", str(path), *arguments]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
