"""RMT-SVD: what tells the arms apart, what they cost, and what the page says of it all."""

from dataclasses import replace
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.papers.paper import FRESH, Outcome, Study, reproduce
from experiments.papers.rmt_svd import LOOP, PAPER, claims, figures
from experiments.papers.rmt_svd.networks import (
    assess,
    fits,
    in_factors,
    leaf,
    replaced,
    trainer_of,
    trial,
)
from experiments.papers.rmt_svd.protocols import PUBLISHED
from experiments.papers.rmt_svd.studies import cnn, fashion, loop, ranks, resnet
from experiments.papers.rmt_svd.studies.counts import parameters_of
from experiments.report.claims import check
from experiments.report.results import Results, of_arrays, study_results
from experiments.report.verdicts import judge_all
from experiments.runs import Run
from spectral_jax import plots, prune
from spectral_jax.compress import compress
from spectral_jax.plots import bulks
from spectral_jax.prune import surgery

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

OPTIONS = {
    "dataset": "digits", "train_limit": 320, "validation": 200, "batch_size": 32, "hidden": (24,),
}  # fmt: skip
LAYER = "layers/0/kernel"


@pytest.fixture(scope="module")
def trainer(quick_compilation):
    return trainer_of(**OPTIONS)


@pytest.fixture(scope="module")
def drawn(trainer):
    return trainer.start([trial(0, 0.05), trial(1, 0.05, relu=True, l2=0.01)])


@pytest.fixture(scope="module")
def trained(trainer, drawn):
    return trainer.train(drawn, epochs=2)


def cut(name, state, like=None):
    return loop.cut_at(loop.ARMS[name], state, (LAYER,), like)


# One program, many trials


def test_a_trial_is_the_network_that_its_numbers_say(trainer, drawn):
    outputs = trainer.outputs(drawn)
    assert float(outputs[0].min()) < 0 <= float(outputs[1].min())
    np.testing.assert_allclose(drawn.hyper["l2"], [0, 0.01])


def test_penalties_pull_on_every_parameter(trainer):
    """On a loss that is flat the update is the penalties' alone."""
    params = {"w": jnp.array([2.0, -3.0, 0.0])}
    hyper = {"learning_rate": jnp.array(0.1), "l1": jnp.array(0.5), "l2": jnp.array(0.25)}
    optimizer = trainer.optimizer(hyper)
    flat = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(flat, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.1, 0.125, 0.0], rtol=1e-6)


def test_what_is_zero_stays_zero_and_the_given_state_can_be_used_again(trainer, drawn):
    kernel = drawn.params["layers"]["0"]["kernel"].at[:, 3:9].set(0)
    state = drawn._replace(params=replaced(drawn.params, {LAYER: kernel}))
    after = leaf(trainer.train(state, epochs=1).params, LAYER)
    assert np.all(np.asarray(after[:, 3:9]) == 0)
    assert np.any(np.asarray(after != leaf(state.params, LAYER)))


def test_a_restart_forgets_the_momentum_and_keeps_the_numbers(trainer, trained):
    fresh = trainer.restart(trained)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(optax.tree.get(fresh, "trace")))
    np.testing.assert_allclose(fresh.hyper["learning_rate"], 0.05)


def test_a_dead_class_is_counted(trainer, drawn):
    bias = drawn.params["layers"]["1"]["bias"].at[:, 4].set(-1e3)
    state = drawn._replace(params=replaced(drawn.params, {"layers/1/bias": bias}))
    before, after = assess(trainer, drawn), assess(trainer, state)
    splits = {"train/accuracy", "validation/accuracy", "test/accuracy"}
    assert set(after) == {*splits, "dead_classes"}
    assert np.all(after["dead_classes"] >= np.maximum(before["dead_classes"], 1))


# The arms


def test_factors_padded_with_zeros_train_as_the_ranks_that_they_are(trainer, trained):
    """Alone in its program a trial of rank 3 has factors of rank 3; beside a larger one, not."""
    wide = {LAYER: np.array([3, 11])}
    kernel = jax.vmap(surgery.truncate)(leaf(trained.params, LAYER), jnp.asarray(wide[LAYER]))
    params = replaced(trained.params, {LAYER: kernel})
    both, costs = in_factors(trained, params, wide)
    assert leaf(both.params, LAYER)["u"].shape == (2, 64, 12)
    np.testing.assert_array_equal(costs[LAYER], [3 * 88, 11 * 88])
    first = jax.tree.map(lambda leaf: leaf[:1], (trained, params))
    alone, _ = in_factors(*first, {LAYER: np.array([3])})
    assert leaf(alone.params, LAYER)["u"].shape == (1, 64, 3)
    trained_on = [trainer.train(state, epochs=1).params for state in (both, alone)]
    ended = [prune.recombine_all(jax.tree.map(itemgetter(0), params)) for params in trained_on]
    np.testing.assert_allclose(*(leaf(end, LAYER) for end in ended), atol=2e-4)


def test_a_split_keeps_what_is_above_the_edge_and_a_share_below(trained):
    report = fits(trained.params, (LAYER,))[LAYER]
    spikes = np.asarray(report.spikes)
    numbers = cut("edge", trained).numbers
    np.testing.assert_array_equal(numbers[f"rank/{LAYER}"], np.maximum(spikes, 1))
    kept = cut("split", trained).numbers[f"rank/{LAYER}"]
    np.testing.assert_array_equal(kept, spikes + np.floor(0.45 * (24 - spikes)))


def test_arms_of_equal_parameters_have_equal_parameters(trained):
    edge = cut("edge", trained).numbers
    for other in ("edge-fixed", "edge-magnitude", "edge-scratch"):
        made = cut(other, trained, edge)
        np.testing.assert_array_equal(made.numbers["parameters"], edge["parameters"])
    entries = leaf(cut("edge-magnitude", trained, edge).state.params, LAYER)
    nonzero = np.count_nonzero(np.asarray(entries), axis=(1, 2))
    np.testing.assert_array_equal(nonzero, edge[f"parameters/{LAYER}"])
    assert "parameters, a bias each" not in cut("edge-magnitude", trained, edge).numbers
    factors = cut("edge", trained).numbers
    np.testing.assert_array_equal(
        factors["parameters, a bias each"] - factors["parameters"], factors[f"rank/{LAYER}"]
    )


def test_one_rank_for_all_layers_has_no_fewer_parameters():
    two = trainer_of(**{**OPTIONS, "hidden": (24, 40)}).start([trial(0, 0.05), trial(1, 0.05)])
    layers = (LAYER, "layers/1/kernel")
    like = {
        f"rank/{layer}": np.array([rank, 2 * rank])
        for layer, rank in zip(layers, (2, 5), strict=True)
    }
    costs = np.array([2 * 88 + 5 * 64, 4 * 88 + 10 * 64])
    like |= {f"parameters/{layer}": costs // 2 for layer in layers}
    made = loop.cut_at(loop.ARMS["edge-fixed"], two, layers, like).numbers
    ranks_of = [made[f"rank/{layer}"] for layer in layers]
    np.testing.assert_array_equal(ranks_of[0], ranks_of[1])
    spent = sum(made[f"parameters/{layer}"] for layer in layers)
    assert np.all(spent >= costs) and np.all(spent < costs + 88 + 64)


def test_where_factors_would_not_save_the_kernel_stays_whole(trained):
    numbers = loop.cut_at(
        loop.Arm("all", prune.Policy(keep_below=1.0)), trained, (LAYER,), None
    ).numbers
    np.testing.assert_array_equal(numbers["parameters"], parameters_of((64, 24, 10)))


# The other studies


class Shelf:
    """What a study needs of a run, kept in memory."""

    def __init__(self):
        self.arrays, self.summary = {}, {}

    def save_array(self, name, **arrays):
        self.arrays[name] = arrays

    def load_array(self, name):
        return self.arrays.get(name)

    def restore_checkpoint(self, like):
        return None

    def save_checkpoint(self, step, state):
        pass


def test_repeated_pruning_touches_the_arms_that_are_pruned():
    options = {**OPTIONS, "hidden": (24,), "epochs": 2, "every": 1, "keep": 1, "rate": 0.05}
    results = fashion.measure(Shelf(), **options, seeds=2)
    assert len(results.arms("fashion")) == len(fashion.LOGITS) * len(fashion.ARMS)
    judged = {one.id: one for one in judge_all(claims.CLAIMS, results, preset="small")}
    assert judged["fashion-mp-relu"].estimate.n == 2
    assert judged["cnn-split"].verdict == "NOT RUN" and "preset small" in judged["cnn-split"].note
    (section,) = figures.sections(Outcome(PAPER, "small", results))
    assert [len(table.rows) for table in section.tables] == [5, 5]
    params = {
        "layers": {"0": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(64, 24)))}}
    }
    event = fashion._pruning((LAYER,), 2)
    for flag in (True, False):
        after = event(params, jnp.array(flag), jnp.array(1))["layers"]["0"]["kernel"]
        rank = np.linalg.matrix_rank(np.asarray(after), tol=1e-3)
        assert (rank == 12) == flag


def test_convolutions_are_split_where_their_gate_is_open():
    trainer = trainer_of("digits", train_limit=320, batch_size=32, model="lenet")
    state = trainer.start([trial(0, 0.01), trial(1, 0.01)])
    split, numbers = cnn.cut_at(state, cnn.ARMS["MP edge"])
    kernels = leaf(split.params, "convs/1/kernel")
    rank = numbers["rank/convs/1/kernel"]
    assert kernels["u"].shape[1:4] == (5, 5, 6) and kernels["v"].shape[1:3] == (1, 1)
    assert np.all(np.asarray(kernels["u"])[0, ..., rank[0] :] == 0)
    counted = [np.count_nonzero(leaf[0]) for leaf in jax.tree.leaves(split.params)]
    assert sum(counted) == numbers["parameters"][0]
    shut = prune.Policy(gate=0.0)
    kept, numbers = cnn.cut_at(state, (shut, shut))
    assert not any(map(prune.is_factored, kept.params["convs"].values()))
    assert set(numbers["parameters"]) == {
        sum(leaf[0].size for leaf in jax.tree.leaves(state.params))
    }


def test_factors_of_a_compressed_network_are_multiplied_out():
    rng = np.random.default_rng(0)
    params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 8, 16)), jnp.float32),
                       "bias": jnp.zeros(16)}}  # fmt: skip
    cut = compress(params, rank="4", framework="flax")
    whole = resnet.multiplied_out(params, cut.tensors)["conv"]["kernel"]
    expected = surgery.truncate(params["conv"]["kernel"].reshape(72, 16), 4)
    np.testing.assert_allclose(whole.reshape(72, 16), expected, atol=1e-5)


# Counting


@pytest.mark.parametrize("name", [name for name, net in PUBLISHED.items() if net.chain])
def test_published_parameters_come_out_of_the_shapes(name):
    net = PUBLISHED[name]
    assert parameters_of(net.widths, net.chain, bias_every_factor=True) == net.parameters


def test_biases_on_last_factors_only():
    net = PUBLISHED["ex4.7"]
    assert parameters_of(net.widths, net.chain) == 17_713_034


# The page


TINY = {
    **LOOP, **OPTIONS, "before": 1, "after": 1, "seeds": 2, "tuning_seeds": 1,
    "arms": ("dense", "split", "edge", "edge-fixed"),
}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory, quick_compilation):
    """A reproduction at the smallest size, and the folder of its report."""
    root = tmp_path_factory.mktemp("runs")
    others = [study for study in PAPER.studies if study.name != "loop"]
    tiny = replace(PAPER, studies=(*others, Study("loop", {"smoke": TINY})))
    settings = ["train.epochs=2", "train.seeds=2", "model.hidden=[24]", "data.train_limit=320"]
    code = reproduce(tiny, "smoke", root=root, overrides=settings)
    return root, code, root / "reports" / "rmt_svd-smoke"


def run_of(root, *names) -> Run:
    return Run(next((root / "rmt_svd").joinpath(*names).glob("*Z-*")))


def test_a_reproduction_writes_verdicts_figures_and_tables(page):
    _, code, folder = page
    assert code == 0
    text = (folder / "report.html").read_text()
    for heading in ("How many singular values it takes", "Splitting while training"):
        assert heading in text
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert {"figure5-ranks", "figure5-spectrum", "loop-parameters", "loop-dead-classes"} <= names


def test_every_arm_is_trained_on_fresh_seeds_at_the_rate_that_validation_prefers(page):
    root, _, _ = page
    results = study_results(run_of(root, "loop"))
    tuning, final = "loop/digits/tuning", "loop/digits"
    assert results.seeds(arm="linear/split", protocol=final) == (FRESH, FRESH + 1)
    for arm in (f"{cell}/{arm}" for cell in loop.CELLS for arm in TINY["arms"]):
        scores = {
            rate: results.values("validation/accuracy", arm=f"{arm}@{rate:g}", protocol=tuning)
            for rate in TINY["rates"]
        }
        best = max(scores, key=lambda rate: scores[rate].mean())
        used = results.values("learning_rate", arm=arm, protocol=final)
        np.testing.assert_allclose(used, best)


def test_a_finished_arm_is_not_trained_again(page, monkeypatch):
    root, _, _ = page
    run = run_of(root, "loop")
    monkeypatch.setattr(loop, "cut_at", lambda *given: pytest.fail("an arm was trained again"))
    assert loop.measure(run, **TINY).to_json() == study_results(run).to_json()


def test_claims_name_arms_that_there_are(page):
    """The arms of studies are known only once they have run; here all of the smallest preset's."""
    check(claims.CLAIMS, PAPER.known())
    ids = {claim.id for claim in claims.CLAIMS}
    named = {need.arm for claim in claims.CLAIMS if claim.evidence
             for need in claim.evidence.needs() if need.protocol.startswith("loop")}  # fmt: skip
    assert named <= {f"{cell}/{arm}" for cell in loop.CELLS for arm in loop.ARMS}
    assert "loop-split-gains-relu-l2" in ids and set(LOOP["arms"]) == set(loop.ARMS)
    judged = {one.id: one for one in judge_all(claims.CLAIMS, Results(), preset="small")}
    assert "hours" in judged["accuracy-ex4.6"].note


def test_cut_at_every_rank_is_the_whole_network_in_the_end(page):
    root, _, _ = page
    results = study_results(run_of(root, "ranks"))

    def linear(metric):
        return results.values(metric, arm="linear", protocol="ranks/digits")

    np.testing.assert_allclose(linear("accuracy/25"), linear("test/accuracy"), atol=0.003)
    assert np.all(linear("accuracy/0") < linear("accuracy/20"))
    assert len(ranks.RANKS) == sum("accuracy/" in m for m in results.rows[0].metrics) - 1
    relu = results.values("dead_classes", arm="relu-logits", protocol="ranks/digits")
    assert np.all(relu >= linear("dead_classes"))
    losses = [
        run_of(root, "figure5", arm).summary["test/loss"] for arm in ("relu-logits", "linear")
    ]
    assert losses[0] != losses[1]


def test_trainers_count_spikes_and_keep_the_singular_values(page):
    root, _, _ = page
    run = run_of(root, "figure5", "linear")
    history = run.history()
    values = run.load_array(f"vectors-{run.summary['steps']:08d}")[LAYER]
    edge = history[f"spectra/edge/{LAYER}"][1][-1]
    spikes = history[f"spectra/spikes/{LAYER}"][1][-1]
    np.testing.assert_array_equal((values > edge[:, None]).sum(axis=1), spikes)


# The figures


def test_the_page_goes_without_the_curve_of_an_arm_that_failed():
    relu = of_arrays("ranks/digits", "relu-logits", {"test/accuracy": [0.5]})
    assert figures.sections(Outcome(PAPER, "smoke", relu, runs={"figure5": {}})) == []


def test_figures_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="panels is empty"):
        bulks.bulk_evolution([])
    with pytest.raises(ValueError, match="1 rows for 2 ranks"):
        bulks.accuracy_by_rank(np.array([1, 2]), np.ones((1, 3)), marks={}, full=np.ones(3))


def test_an_interval_of_two_seeds_shows_no_accuracy_that_cannot_be():
    """It is 380 points wide where the seeds are 30 apart, and would hide what the arms do."""
    sizes, wide, narrow = np.array([10, 10]), np.array([100.0, 70.0]), np.array([90.0, 90.2])
    (ax,) = bulks.accuracy_by_parameters({"wide": (sizes, wide), "narrow": (sizes, narrow)}).axes
    assert ax.get_ylim()[0] >= 0 and ax.get_ylim()[1] == 100
    (bar,) = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bar[:, 1], [0, 100])
    (ax,) = bulks.accuracy_by_parameters({"narrow": (sizes, narrow)}).axes
    assert 88 < ax.get_ylim()[0] and ax.get_ylim()[1] < 92


def test_the_law_is_drawn_over_the_bulk():
    rng = np.random.default_rng(0)
    values = np.linalg.svd(rng.standard_normal((60, 90)), compute_uv=False)
    panel = bulks.Bulk("noise", values, (60, 90), sigma=1.0, edge=18.0)
    figure = bulks.bulk_evolution([panel])
    law = next(line for line in figure.axes[0].lines if "fitted" in str(line.get_label()))
    s, density = law.get_data()
    assert np.trapezoid(density, s) == pytest.approx(1, abs=0.01)
    assert plots.to_svg(bulks.bulk_evolution([panel])) == plots.to_svg(figure)
