"""``analyze``: what each layer's spectrum says, from arrays, from a file, from a shell."""

import csv
import io
import json
import math
import os
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from spectral_jax._door.source import Arrays, select
from spectral_jax._door.table import align, number
from spectral_jax.analysis import COLUMNS, analyze, analyze_layers
from spectral_jax.analysis.comparison import compare
from spectral_jax.analysis.layers import eigenvalues
from spectral_jax.analysis.text import render
from spectral_jax.analysis.verdicts import VERDICTS, by_urgency, judge, summarise
from spectral_jax.checkpoints import load, open_checkpoint, save_safetensors
from spectral_jax.cli import main

pytest.importorskip("pandas")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def heavy(m, n, seed=0):
    """A matrix whose eigenvalues follow a power law of exponent 2."""
    rng = np.random.default_rng(seed)
    k = min(m, n)
    u, v = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m, n))
    values = (1 - (np.arange(k) + 0.5) / k) ** -1.0
    return ((u * np.sqrt(values)) @ v.T).astype(np.float32)


NETWORK = {
    "noise/kernel": noise(96, 64),
    "heavy/kernel": heavy(96, 64),
    "conv/kernel": noise(3, 3, 24, 32, seed=1),
    "dead/kernel": np.outer(noise(64), noise(48)),
    "zero/kernel": np.zeros((40, 30), np.float32),
    "broken/kernel": np.full((40, 30), np.nan, np.float32),
    "tiny/kernel": noise(20, 4),
    "dense/bias": noise(7),
}


@pytest.fixture(scope="module")
def table():
    return analyze(NETWORK, metrics=["norms", "hill", "ks", "farms"]).set_index("layer")


def test_eigenvalues_are_squared_singular_values_pooled_over_slices():
    stack = noise(5, 12, 7)
    values = np.linalg.svd(stack.astype(float), compute_uv=False) ** 2
    np.testing.assert_allclose(eigenvalues(stack), np.sort(values, axis=None), rtol=1e-10)


# Verdicts


def test_each_layer_gets_the_verdict_it_was_built_for(table):
    assert table.verdict.to_dict() == {
        "noise/kernel": "like random",
        "heavy/kernel": "structured",
        "conv/kernel": "like random",
        "dead/kernel": "collapsed",
        "zero/kernel": "zero",
        "broken/kernel": "not finite",
        "tiny/kernel": "too small",
    }


def test_verdicts_read_the_numbers_of_a_row():
    row = dict(m=64, n=64, slices=1, finite=True, rank=64, possible_rank=64, stable_rank=9.0)
    fitted = dict(alpha_hill=2.0, alpha_null=2.1, alpha_ks=3.0, sigma=0.1)
    verdicts = {
        "like random": dict(alpha_z=-2.9, **fitted),
        "structured": dict(alpha_z=-3.1, **fitted),
        "flat": dict(alpha_z=3.1, **fitted),
        "very heavy": dict(alpha_z=-9.0, **fitted | dict(alpha_ks=1.7)),
        "not judged": {},
        "one direction": dict(alpha_z=-9.0, **fitted) | dict(stable_rank=1.2),
    }
    for word, numbers in verdicts.items():
        assert judge(row | numbers)[0] == word
    # Where no power law fits, its exponent says nothing; a fit that was not tested stands.
    heavy = row | fitted | dict(alpha_z=-9.0, alpha_ks=1.7)
    verdict, reason = judge(heavy | dict(p_value=0.0))
    assert verdict == "structured" and "no power law" in reason
    for p_value in (0.4, np.nan):
        assert judge(heavy | dict(p_value=p_value))[0] == "very heavy"
    # An exponent that may as well be above 2 is not called below it.
    assert judge(row | fitted | dict(alpha_z=-9.0, alpha_ks=1.9, sigma=0.1))[0] == "structured"


def test_slices_of_one_or_two_eigenvalues_are_not_judged_by_their_null():
    row = analyze_layers(Arrays({"conv/kernel": noise(5, 8, 1, 32)})).rows[0]
    assert row["verdict"] == "too small" and "flattened" in row["reason"]


@pytest.mark.parametrize("layer", [np.eye(40), np.eye(64)[::-1] * 1e-30, np.eye(60, 20)])
def test_equal_singular_values_are_flat_not_few(layer):
    row = analyze_layers(Arrays({"fc/kernel": layer.astype(np.float32)})).rows[0]
    assert row["verdict"] == "flat" and row["rank"] == min(layer.shape)


def test_a_low_rank_update_is_judged_by_the_rank_that_its_factors_allow():
    def verdict(*factors, names=("lora_A", "lora_B")):
        sizes = {f"q.{name}.weight": each for name, each in zip(names, factors, strict=True)}
        return analyze_layers(Arrays(sizes)).rows[0]

    whole = verdict(noise(12, 60), noise(80, 12))
    assert (whole["kind"], whole["rank"], whole["verdict"]) == ("low_rank", 12, "not judged")
    assert math.isfinite(whole["alpha_hill"]) and math.isnan(whole["alpha_z"])
    assert verdict(noise(2, 60), noise(80, 2))["verdict"] == "too small"
    dead = verdict(np.outer(noise(12), noise(60)), noise(80, 12))
    assert (dead["verdict"], dead["reason"]) == ("collapsed", "rank 1 of 12")
    assert verdict(np.zeros((12, 60)), noise(80, 12))["verdict"] == "zero"
    loha = [noise(60, 3), noise(3, 40), noise(60, 4, seed=1), noise(4, 40, seed=1)]
    loha = verdict(*loha, names=[f"hada_w{i}_{c}" for i in (1, 2) for c in "ab"])
    assert (loha["rank"], loha["verdict"]) == (12, "not judged")
    lokr = verdict(
        noise(6, 5), noise(10, 2), noise(2, 8), names=["lokr_w1", "lokr_w2_a", "lokr_w2_b"]
    )
    assert (lokr["rank"], lokr["verdict"]) == (10, "not judged")


@pytest.mark.parametrize("dtype", [np.complex64, ">c16"])
def test_complex_weights_are_never_read_by_their_real_part(dtype):
    complex_weights = {"fno/kernel": noise(30, 20).astype(dtype), "fc/kernel": noise(30, 20)}
    found = analyze_layers(Arrays(complex_weights))
    assert [row["layer"] for row in found.rows] == ["fc/kernel"]
    with pytest.raises(ValueError, match="'fno/kernel' cannot be 'dense' .complex"):
        analyze_layers(Arrays(complex_weights), kinds={"fno/*": "dense"})


@pytest.mark.parametrize("dtype", [">i4", object, "S8"])
def test_what_is_no_real_number_in_any_byte_order_is_no_layer(dtype):
    odd = {"steps/kernel": np.ones((30, 20)).astype(dtype), "fc/kernel": noise(30, 20)}
    assert [row["layer"] for row in analyze_layers(Arrays(odd)).rows] == ["fc/kernel"]


def test_one_pattern_and_one_metric_need_no_list():
    found = analyze_layers(Arrays(NETWORK), layers="conv*", metrics="norms").rows
    assert [row["layer"] for row in found] == ["conv/kernel"] and "alpha_z" not in found[0]


def test_what_needs_attention_comes_first(table):
    urgency = [VERDICTS[row["verdict"]].urgency for row in by_urgency(table.to_dict("records"))]
    assert urgency == sorted(urgency)


def test_the_summary_counts_names_and_says_how_sure_it_is(table):
    rows = table.reset_index().to_dict("records")
    text = " ".join(summarise(rows, skipped=1, share=0.5))
    assert (
        "7 layers" in text
        and "(50 % of the numbers that can be read)" in text
        and "1 tensor was left out" in text
    )
    assert "2 of 7, noise/kernel, conv/kernel." in text or "2 of 7, conv/kernel, noise/" in text
    assert "3 standard deviations of random matrices" in text


def test_the_share_that_was_read_is_that_of_the_tensors_not_of_their_product():
    factors = {"q.lora_A.weight": noise(2, 60), "q.lora_B.weight": noise(80, 2)}
    assert "(100 % of the numbers" in analyze_layers(Arrays(factors)).summary
    third = {"other.bias": np.zeros(140)}
    assert "(66.7 % of the numbers" in analyze_layers(Arrays(factors | third)).summary


def test_tied_weights_are_one_layer_and_counted_once():
    table = noise(60, 12)
    found = analyze_layers(Arrays({"wte": {"embedding": table}, "head": {"embedding": table}}))
    assert [row["layer"] for row in found.rows] == ["head/embedding"]
    assert found.skipped[0].reason == "tied: the same array as 'head/embedding'"
    assert "(100 % of the numbers" in found.summary


def test_numbers_of_python_among_the_parameters_are_skipped():
    found = analyze_layers(Arrays({"fc": {"kernel": noise(30, 20)}, "temperature": 1.0}))
    assert [row["layer"] for row in found.rows] == ["fc/kernel"]
    assert [(each.name, each.reason) for each in found.skipped] == [("temperature", "scalar")]


# The table


def test_every_column_is_documented_and_filled(table):
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    assert all(column.meaning for column in COLUMNS)
    known = {column.name for column in COLUMNS}
    assert set(table.columns) <= known
    sound = table.drop(["zero/kernel", "broken/kernel", "tiny/kernel", "dead/kernel"])
    assert sound.select_dtypes("number").notna().all(axis=None)


def test_shape_bias_is_seen_and_removed(table):
    for name in ("noise/kernel", "conv/kernel"):
        assert abs(table.alpha_debiased[name]) < 0.5
    assert table.alpha_farms["noise/kernel"] == pytest.approx(2.12, abs=0.25)


def test_what_was_skipped_is_listed_with_its_reason():
    skipped = analyze(NETWORK).attrs["skipped"]
    assert [(each["name"], each["reason"]) for each in skipped] == [("dense/bias", "bias")]


def test_nothing_to_analyse_is_an_error():
    with pytest.raises(ValueError, match="no .*matri"):
        analyze({"bias": noise(4)})


def test_a_layer_filter_keeps_what_it_names():
    assert list(analyze(NETWORK, layers=["*oi*"]).layer) == ["noise/kernel"]
    with pytest.raises(ValueError, match="match nothing"):
        analyze(NETWORK, layers=["decoder*"])


def test_metrics_that_were_not_asked_for_are_not_there():
    assert "alpha_ks" not in analyze(NETWORK, metrics=["norms"]).columns
    with pytest.raises(ValueError, match="'nroms' is unknown"):
        analyze(NETWORK, metrics=["nroms"])


def test_slow_metrics_are_numbers_too():
    row = analyze(NETWORK, metrics=["all"], layers=["heavy*"]).iloc[0]
    assert 0 <= row.p_value <= 1 and 0 <= row.exponential_p <= 1
    assert row.exponential_ratio > 0  # it is a power law


def test_columns_of_the_terminal_line_up():
    lines = align([("name", "value"), ("a", "1.5"), ("long", "-12")])
    assert lines == ["name  value", "a       1.5", "long    -12"]


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "-"),
        (math.nan, "-"),
        (3, "3"),
        (0.0, "0"),
        (12.345, "12.3"),
        (1e-7, "1e-07"),
        (-9.996, "-10.0"),
        (1234.5, "1234"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_the_terminal_table_has_one_line_per_layer_and_colour_on_demand(table):
    rows = table.reset_index().to_dict("records")
    plain = render(rows, colour=False)
    assert len(plain.splitlines()) == len(rows) + 1 and "\033" not in plain
    assert "\033[" in render(rows, colour=True)


# Two checkpoints


def test_a_comparison_pairs_layers_by_name():
    before = analyze_layers(Arrays(NETWORK)).rows
    changed = {**NETWORK, "noise/kernel": 2 * NETWORK["noise/kernel"], "new/kernel": noise(30, 20)}
    after = analyze_layers(Arrays(changed)).rows
    rows = {row["layer"]: row for row in compare(before, after, ["log_norm", "alpha_z"])}
    assert rows["noise/kernel"]["log_norm_change"] == pytest.approx(math.log10(4), rel=1e-6)
    assert rows["noise/kernel"]["alpha_z_change"] == pytest.approx(0, abs=1e-6)
    assert "log_norm_change" not in rows["new/kernel"]
    assert rows["new/kernel"]["verdict"] == "no layer -> like random"


def test_a_layer_that_died_came_or_went_is_first_in_a_comparison():
    before = analyze_layers(Arrays(NETWORK)).rows
    changed = NETWORK | {
        "noise/kernel": noise(96, 64, seed=7),
        "heavy/kernel": np.zeros((96, 64), np.float32),
        "new/kernel": noise(30, 20),
    }
    del changed["conv/kernel"]
    after = analyze_layers(Arrays(changed)).rows
    rows = compare(before, after, ["alpha_z", "log_norm"])
    assert {row["layer"] for row in rows[:3]} == {"heavy/kernel", "conv/kernel", "new/kernel"}
    assert rows[3]["layer"] == "noise/kernel"


def test_networks_without_a_common_layer_are_not_compared():
    left, right = (analyze_layers(Arrays({f"{name}/kernel": noise(9, 9)})).rows for name in "ab")
    with pytest.raises(ValueError, match="no layer of one is in the other"):
        compare(left, right, ["alpha_z"])


def test_patterns_select_views_in_order():
    from spectral_jax.weights import plan

    found = plan({name: array.shape for name, array in NETWORK.items()})
    assert [view.name for view in select(found, ["*o*se/*", "conv*"])] == [
        "noise/kernel",
        "conv/kernel",
    ]


def test_layers_are_named_as_the_table_names_them():
    from spectral_jax.weights import plan

    shapes = {f"net.h[{i}].{part}.weight": (9, 9) for i in range(2) for part in ("up", "down")}
    found = plan(shapes)
    for patterns in (["h[0].up"], ["net.h[0].up.weight"], ["h[[]0].up"]):
        assert [view.name for view in select(found, patterns)] == ["net.h[0].up.weight"]


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled and parallel": lambda name: f"_orig_mod.module.{name}",
    "compiled inside": lambda name: name.replace("enc.", "enc._orig_mod."),
    "in a lightning module": lambda name: f"student.net.{name}",
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("later", [False, True])
def test_a_wrapped_checkpoint_is_compared_with_the_plain_one(wrap, later):
    plain = {name: noise(20, 12, seed=i) for i, name in enumerate(("enc.a.w", "enc.b.w", "head.w"))}
    wrapped = {wrap(name): 2 * array for name, array in plain.items()}
    pair = [analyze_layers(Arrays(each)).rows for each in (plain, wrapped)]
    rows = compare(*(pair if later else pair[::-1]), ["log_norm"])
    sign = 1 if later else -1
    assert [row["log_norm_change"] for row in rows] == pytest.approx(3 * [sign * math.log10(4)])


def test_layers_of_another_part_are_not_paired_by_their_ends():
    left, right = (
        analyze_layers(Arrays({f"{part}.{i}.w": noise(9, 9) for i in "01"})).rows
        for part in ("encoder", "decoder")
    )
    with pytest.raises(ValueError, match="no layer of one is in the other"):
        compare(left, right, ["alpha_z"])


def test_what_a_comparison_is_sorted_by_is_shown():
    rows = [
        analyze_layers(Arrays({"a/k": noise(40, 30, seed=s), "b/k": noise(40, 30)})).rows
        for s in (1, 2)
    ]
    compared = compare(*rows, ["alpha_z", "alpha_ks", "log_norm"])
    heading = render(compared, colour=False).splitlines()[0]
    assert {"alpha_z_change", "alpha_ks_change", "log_norm_change"} <= set(heading.split())


@pytest.mark.parametrize("scale", [1e-200, 1e-170, 1e-30, 1e30, 1e154, 1e200])
def test_a_layer_of_any_scale_is_judged_and_ends_no_other(scale):
    kernel = heavy(96, 64).astype(np.float64)
    plain, *_ = analyze_layers(Arrays({"a/kernel": kernel})).rows
    row, other = analyze_layers(Arrays({"a/kernel": scale * kernel, "b/kernel": kernel})).rows
    assert row["verdict"] == plain["verdict"] == other["verdict"] and row["rank"] == plain["rank"]
    for name in (
        "alpha_ks",
        "alpha_hill",
        "alpha_z",
        "stable_rank",
        "entropy",
        "mp_softrank",
        "ks_distance",
    ):
        assert row[name] == pytest.approx(plain[name], rel=1e-6), name
    for name in ("log_norm", "log_spectral_norm"):
        assert row[name] == pytest.approx(plain[name] + 2 * math.log10(scale), abs=1e-6), name
    shift = 2 * plain["alpha_ks"] * math.log10(scale)
    assert row["log_alpha_norm"] == pytest.approx(plain["log_alpha_norm"] + shift, rel=1e-6)


def test_an_outlier_does_not_squash_the_figure_of_the_exponents():
    from spectral_jax.plots import alphas_by_layer

    alpha, null = np.array([2.0, 2.5, 3.0, 60.0]), np.full(4, 2.4)
    (ax,) = alphas_by_layer([*"abcd"], alpha, null, null - 0.2, null + 0.2).axes
    assert ax.get_xlim()[1] < 6
    assert [text.get_text().strip() for text in ax.texts] == ["60"]


# The command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    save_safetensors(path, NETWORK)
    return path


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def having(self, attribute):
        return [attrs[attribute] for _, attrs in self.found if attribute in attrs]


def run(capsys, *words):
    code = main(["analyze", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_a_table_and_what_it_means(checkpoint, capsys):
    code, out, err = run(capsys, checkpoint, "--skipped")
    assert code == 0 and err == ""
    assert {line.split("  ")[0] for line in out.splitlines()[1:3]} == {"not finite", "zero"}
    assert "7 layers" in out and "dense/bias" in out


@pytest.fixture
def steps(tmp_path):
    """A run of two steps whose only layer has its step on the diagonal."""
    for step in (1, 2):
        (tmp_path / "run" / str(step)).mkdir(parents=True)
        path = tmp_path / "run" / str(step) / "model.safetensors"
        save_safetensors(path, {"fc/kernel": step * np.eye(12, dtype="float32")})
    return tmp_path / "run"


def test_of_a_folder_of_steps_the_one_asked_for_is_analysed(steps, capsys):
    for words, spectral_norm in (((), 4), (("--step", 1), 1), (("--step", 2), 4)):
        code, out, err = run(capsys, steps, "--json", *words)
        assert (code, err) == (0, "")
        assert json.loads(out)["layers"][0]["spectral_norm"] == spectral_norm
    code, _, err = run(capsys, steps, "--step", 3)
    assert code == 2 and err == f"spectral-jax: {steps}: has no step 3: there is 2, 1\n"
    with open_checkpoint(steps, step=1) as opened:
        assert analyze(opened).spectral_norm.tolist() == [1.0]
    small = steps / "small.safetensors"
    assert main(["compress", str(steps), "--step", "1", "--rank", "3", "--out", str(small)]) == 0
    np.testing.assert_allclose(np.linalg.norm(load(small)["fc/kernel/u"]), math.sqrt(3), rtol=1e-6)


def test_json_is_strict_and_has_every_column(checkpoint, capsys):
    code, out, _ = run(capsys, checkpoint, "--json")
    document = json.loads(out, parse_constant=pytest.fail)
    assert code == 0 and len(document["layers"]) == 7
    row = next(row for row in document["layers"] if row["layer"] == "zero/kernel")
    assert row["alpha_ks"] is None and row["fit"] == "not finite or zero"


def test_csv_is_a_table(checkpoint, capsys):
    _, out, _ = run(capsys, checkpoint, "--csv", "--metrics", "norms")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 7 and float(rows[0]["parameters"]) > 0


def test_parquet_holds_what_json_says(checkpoint, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    target = tmp_path / "table.parquet"
    assert run(capsys, checkpoint, "--parquet", target)[0] == 0
    assert parquet.read_table(target).num_rows == 7


def test_a_table_that_cannot_be_written_leaves_the_older_one(
    checkpoint, tmp_path, capsys, monkeypatch
):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "table.parquet").write_text("precious")

    def half(table, path):
        path.write_text("PAR1")
        raise OSError("no space left")

    monkeypatch.setattr(parquet, "write_table", half)
    words = (checkpoint, "--parquet", tmp_path / "table.parquet", "--force")
    assert run(capsys, *words)[0] == 2
    assert [file.read_text() for file in tmp_path.iterdir()] == ["precious"]


def test_the_page_stands_alone_and_escapes_names(tmp_path, capsys):
    path, page = tmp_path / "m.safetensors", tmp_path / "out.html"
    save_safetensors(path, {"<script>/kernel": noise(32, 24), "b/kernel": noise(24, 24)})
    assert run(capsys, path, "--report", page)[0] == 0
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert text.count("<svg") == 2


def test_two_checkpoints_side_by_side(checkpoint, tmp_path, capsys):
    other, page = tmp_path / "other.safetensors", tmp_path / "out.html"
    save_safetensors(other, NETWORK | {"noise/kernel": heavy(96, 64)})
    code, out, _ = run(capsys, checkpoint, "--compare", other, "--report", page)
    assert code == 0 and "like random -> structured" in out.splitlines()[1]
    assert "Before (model.safetensors): 7 layers" in " ".join(out.split())
    text = page.read_text().replace("<wbr>", "")
    assert "Side by side" in text and "After (other.safetensors)" in text
    assert "alpha_z_change" in text and "alpha_null_change" not in text  # the shapes are the same


def test_pages_of_files_of_one_name_have_ids_of_their_own(tmp_path, capsys):
    paths, page = [tmp_path / step / "model.safetensors" for step in "12"], tmp_path / "out.html"
    for path in paths:
        path.parent.mkdir()
        save_safetensors(path, NETWORK)
    assert run(capsys, paths[0], "--compare", paths[1], "--report", page)[0] == 0
    tags = Tags(page.read_text())
    assert len(tags.having("id")) == len(set(tags.having("id"))) > 0


def test_the_page_is_read_without_eyes_mouse_or_script(checkpoint, tmp_path, capsys):
    page = tmp_path / "out.html"
    assert run(capsys, checkpoint, "--report", page)[0] == 0
    tags = Tags(page.read_text())
    figures = [attributes for tag, attributes in tags.found if tag == "svg"]
    assert [figure["role"] for figure in figures] == ["img", "img"]
    exponents, spectra = (figure["aria-label"] for figure in figures)
    assert "3 layers" in exponents and "1 below the range of chance, 2 within" in exponents
    assert "Farthest below: heavy/kernel" in exponents
    assert "noise" in spectra and "heavy" in spectra
    scrolled = [attributes for _, attributes in tags.found if attributes.get("class") == "wide"]
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in scrolled)
    links = [link[1:] for link in tags.having("href") if link.startswith("#column-")]
    assert "column-alpha_z" in links and set(links) <= set(tags.having("id"))
    assert not any(tag == "script" or "onclick" in attributes for tag, attributes in tags.found)
    assert "z -" in page.read_text()  # what a verdict was read from, not in a tooltip


def test_nothing_is_overwritten_without_being_told(checkpoint, tmp_path, capsys):
    page = tmp_path / "out.html"
    page.write_text("precious")
    code, _, err = run(capsys, checkpoint, "--report", page)
    assert code == 2 and "--force" in err and page.read_text() == "precious"
    assert run(capsys, checkpoint, "--report", page, "--force")[0] == 0
    assert page.read_text() != "precious"


@pytest.mark.parametrize(
    "words, code, hint",
    [
        (["{tmp}/absent.npz"], 4, "no such"),
        (["{tmp}/garbage.npz"], 2, "garbage.npz"),
        ([], 2, "PATH"),
        ([""], 2, "path is empty"),
        (["{model}", "--compare", ""], 2, "path is empty"),
        (["{model}", "--report", ""], 2, "name a file"),
        (["{model}", "--report", "/dev/null", "--force"], 2, "no regular file"),
        (["{model}", "--parquet", "{tmp}/dangling", "--force"], 2, "no regular file"),
        (["{model}", "--report", "{model}", "--force"], 2, "is what is to be read"),
        (["{model}", "--report", "{tmp}/again", "--force"], 2, "is what is to be read"),
        (["{tmp}", "--report", "{tmp}/empty.npz", "--force"], 2, "or in it"),
        (["{model}", "--metrics", "hil"], 2, "'hil' is unknown"),
        (["{model}", "--metrics", "all,foo"], 2, "'foo' is unknown"),
        (["{model}", "--layers", "nope*"], 2, "match nothing"),
        (["{model}", "--kind", "dense"], 2, "GLOB=KIND"),
        (["{model}", "--report", "{tmp}/no/such/out.html"], 2, "no folder"),
        (["{model}", "--report", "{tmp}", "--force"], 2, "is a folder"),
        (["{model}", "--compare", "{tmp}/absent.npz"], 4, "absent.npz: there is no such"),
        (["{tmp}/empty.npz"], 2, "empty"),
        (["{tmp}/cut.safetensors"], 2, "cut.safetensors"),
    ],
)
def test_wrong_input_is_one_line_and_an_exit_code(checkpoint, tmp_path, capsys, words, code, hint):
    (tmp_path / "garbage.npz").write_bytes(b"not a checkpoint at all")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:-100])
    (tmp_path / "again").symlink_to(checkpoint)
    (tmp_path / "dangling").symlink_to("nowhere")
    found, out, err = run(capsys, *(w.format(tmp=tmp_path, model=checkpoint) for w in words))
    assert (found, out) == (code, "")
    assert hint in err and err.count("\n") == 1


def test_two_tables_do_not_go_to_one_stdout(checkpoint, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["analyze", str(checkpoint), "--json", "--csv"])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error(checkpoint):
    command = f"{sys.executable} -m spectral_jax.cli analyze {checkpoint} --json | head -c 1; "
    done = subprocess.run(
        ["bash", "-c", command + "exit ${PIPESTATUS[0]}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


@pytest.mark.parametrize(
    "stdout, code, says",
    [(">&-", 2, "stdout is closed"), ("> /dev/full", 2, "No space left")],
)
def test_a_table_that_goes_nowhere_is_one_line(checkpoint, stdout, code, says):
    command = f"{sys.executable} -m spectral_jax.cli analyze {checkpoint} --csv {stdout}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert says in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_no_encoding_has_are_shown(encoding, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\x1b[2J.npz"
    np.savez(os.fsdecode(path), **{"größe.weight": noise(40, 30)})
    page = tmp_path / "out.html"
    done = subprocess.run(
        [sys.executable, "-m", "spectral_jax.cli", "analyze", path, "--report", page],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert ("größe" if encoding == "utf-8" else "gr\\xf6\\xdfe") in done.stdout.decode()
    assert "??[2J.npz" in page.read_text(encoding="utf-8")
    assert b"\x1b" not in done.stdout + done.stderr


def test_a_spreadsheet_runs_no_name_as_a_formula(tmp_path, capsys):
    names = ("=HYPERLINK(1)", "+1+1", "-cmd", "@SUM(A1)")
    path = tmp_path / "model.npz"
    np.savez(path, **{name: noise(40, 30) for name in names})
    _, out, _ = run(capsys, path, "--csv", "--metrics", "norms,hill")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {row["layer"] for row in rows} == {f"'{name}" for name in names}
    assert all(float(row["alpha_z"]) for row in rows)  # of either sign


def test_columns_are_explained_on_demand(capsys):
    code, out, _ = run(capsys, "--columns")
    assert code == 0 and len(out.splitlines()) == len(COLUMNS)


def test_default_metrics_of_a_file_need_no_jax(checkpoint):
    blocked = (
        "import sys; sys.modules['jax'] = None; from spectral_jax.cli import main; "
        f"sys.exit(main(['analyze', {str(checkpoint)!r}, '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["layers"]) == 7
