"""A config says everything about an experiment, survives YAML, and refuses what it cannot mean."""

import dataclasses
import os

import pytest

from experiments.config import (
    BalanceConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    PenaltyConfig,
    TrainConfig,
    apply_overrides,
    config_hash,
    dump_yaml,
    from_mapping,
    load_yaml,
    to_mapping,
)
from experiments.errors import MISSING, USAGE, UserError

CONFIG = ExperimentConfig(
    "fiedler/mnist",
    data=DataConfig(train_limit=500, label_noise=0.25),
    model=ModelConfig(hidden=(64, 32)),
    penalty=PenaltyConfig("lambda_2", strength=1e-2, mode="proximal"),
    paper_compat=("l1_biases",),
)


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return load_yaml(path)

    return read


def test_yaml_round_trip_gives_an_equal_config(read):
    assert read(dump_yaml(CONFIG)) == CONFIG


def test_a_file_needs_only_a_name_and_what_differs_from_the_defaults(read):
    config = read("name: short\ntrain:\n  epochs: 3\n")
    same = ExperimentConfig("short", train=TrainConfig(epochs=3))
    assert config == same
    assert to_mapping(config) == to_mapping(same)  # what a run keeps of it has the defaults
    assert config_hash(config) == config_hash(same)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "+1.0e-3", "0.001"])
def test_exponents_are_numbers_even_where_yaml_1_1_says_text(read, text):
    config = read(f"name: x\noptimizer: {{learning_rate: {text}}}")
    assert config.optimizer.learning_rate == 0.001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam: x", "unknown key 'nam'; did you mean 'name'?"),
        ("name: x\ntrain: {epoch: 3}", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("name: x\nepochs: 3", "unknown key 'epochs'; did you mean 'train.epochs'?"),
        ("train: {epochs: 3}", "key 'name' is missing; add a line such as `name: my-experiment`"),
        ("name: x\ntrain: 3", "train = 3: expected a mapping with keys among epochs, seeds"),
        ("name: x\ntrain: {epochs: many}", "train.epochs = 'many': expected int"),
        ("name: x\ntrain: {epochs: true}", "train.epochs = True: expected int"),
        ("name: x\ndata: {train_limit: 1.5}", "data.train_limit = 1.5: expected int or null"),
        ("name: x\nmodel: {hidden: [8, a]}", "model.hidden = [8, 'a']: expected a list of int"),
        ("name: x\noptimizer: {name: adamm}", "one of sgd, adam, adamw; did you mean 'adam'?"),
        ("name: x\ntrain: {epochs: 0}", "train.epochs = 0: expected an integer >= 1"),
        ("name: x\npaper_compat: [l1_bias]", "did you mean 'l1_biases'?"),
        ("name: ../x", "name = '../x': expected letters"),
        ("name: x\nname: y", "not valid YAML: line 2: key 'name' is given twice"),
        ("name: [", "not valid YAML: line 1"),
        ("name: !!python/object:os.system x", "not valid YAML: line 1"),
        ("{[1]: 2}", "not valid YAML: line 1"),
        ("- 1", "expected a mapping of keys, got list"),
        ("a: &a [x]\nname: *a", "line 2: aliases (*name) are not read"),
        ("name: " + 40 * "[" + 40 * "]", "nested more than 16 deep"),
        ("name: " + 10**5 * "[", "nested more than 16 deep"),
        (
            "name: x\ntrain: {epochs: 2026-11-29}",
            "train.epochs = '2026-11-29': expected int",
        ),
        ("name: x\ntrain: {epochs: 010}", "train.epochs = '010': expected int"),
        ("name: x\ntrain: {epochs: 1:30}", "train.epochs = '1:30': expected int"),
        ("name: x\0y", "not valid YAML: unacceptable character"),
        ("name: " + 500 * "n", "at most 120 bytes"),
        ("name: x\noptimizer: {learning_rate: .nan}", "learning_rate = nan: expected a finite"),
        ("name: x\nmodel: {hidden: [1000000000]}", "hidden = [1000000000]: expected widths >= 1"),
        ("name: x\ntrain: {seed: 4294967296, seeds: 1}", "seed = 4294967296: expected"),
        ("name: x\ntrain: {seed: 4294967295, seeds: 2}", "seed = 4294967295: expected"),
        ("name: x\ntrain: {epochs: " + 5000 * "9" + "}", "Exceeds the limit"),
        ("", "expected a mapping of keys, got NoneType"),
    ],
)
def test_a_wrong_file_is_one_line_with_the_place_and_the_fix(read, text, message):
    with pytest.raises(UserError) as failure:
        read(text)
    assert failure.value.exit_code == USAGE
    assert message in failure.value.message
    assert "experiment.yaml: " in failure.value.message
    assert "\n" not in failure.value.message


def test_nine_lines_of_aliases_are_refused_at_once(read):
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 10)
    )
    with pytest.raises(UserError) as failure:
        read(bomb)
    assert len(failure.value.message) < 200


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("#" + 2**20 * "x")
    for name, reason in (("pipe", "not a regular file"), ("large", "larger than 1 MiB")):
        with pytest.raises(UserError, match=reason) as failure:
            load_yaml(tmp_path / f"{name}.yaml")
        assert failure.value.exit_code == USAGE


@pytest.mark.parametrize("word", ["on", "no", "yes", "2026-11-29", "010"])
def test_words_that_yaml_1_1_reads_as_something_else_are_text(read, word):
    assert read(f"name: {word}").name == word


@pytest.mark.parametrize("name", ["1e-3", "1.e5", "010", "no", "2026-11-29"])
def test_a_name_that_looks_like_a_number_comes_back_as_text(read, name):
    config = ExperimentConfig(name)
    assert read(dump_yaml(config)) == config


def test_a_missing_file_and_an_unreadable_one_differ(tmp_path):
    with pytest.raises(UserError, match="no file .*absent.yaml") as failure:
        load_yaml(tmp_path / "absent.yaml")
    assert failure.value.exit_code == MISSING
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(UserError, match="cannot be read as text") as failure:
        load_yaml(tmp_path / "binary.yaml")
    assert failure.value.exit_code == USAGE


def test_overrides_are_yaml_values_at_dotted_keys():
    config = apply_overrides(
        CONFIG,
        ["train.epochs=3", "model.hidden=[8, 8]", "data.train_limit=null", "paper_compat=[]"],
    )
    assert config.train.epochs == 3
    assert config.model.hidden == (8, 8)
    assert config.data == DataConfig(label_noise=0.25)
    assert config.paper_compat == ()
    assert config.penalty == CONFIG.penalty


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=3", "command line: unknown key 'epochs'; did you mean 'train.epochs'?"),
        ("train.epoch=3", "did you mean 'train.epochs'?"),
        ("zzz=1", "known keys: name, data.name"),
        ("train.epochs", "write key=value"),
        ("train.epochs=", "train.epochs = None: expected int"),
        ("model.hidden=[1", "model.hidden: not valid YAML"),
        ("penalty.strength=.nan", "penalty.strength = nan: expected a finite number >= 0"),
    ],
)
def test_a_wrong_override_is_one_line(override, message):
    with pytest.raises(UserError) as failure:
        apply_overrides(CONFIG, [override])
    assert failure.value.exit_code == USAGE
    assert message in failure.value.message


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (DataConfig, {"batch_size": 0}),
        (DataConfig, {"train_limit": 0}),
        (DataConfig, {"validation": -1}),
        (DataConfig, {"label_noise": 1.1}),
        (ModelConfig, {"hidden": (8, 0)}),
        (ModelConfig, {"dropout": 1.0}),
        (ModelConfig, {"depth": 0}),
        (ModelConfig, {"width": 0}),
        (DataConfig, {"test_limit": 0}),
        (OptimizerConfig, {"weight_decay": -1.0}),
        (BalanceConfig, {"low": 2.0}),
        (BalanceConfig, {"window": 0}),
        (BalanceConfig, {"samples": 0}),
        (BalanceConfig, {"cols_per_row": 0.0}),
        (BalanceConfig, {"refresh_every": 0}),
        (BalanceConfig, {"min_eigenvalues": 0}),
        (OptimizerConfig, {"learning_rate": 0.0}),
        (OptimizerConfig, {"learning_rate": float("inf")}),
        (OptimizerConfig, {"momentum": 1.0}),
        (PenaltyConfig, {"strength": -1.0}),
        (PenaltyConfig, {"strength": float("nan")}),
        (PenaltyConfig, {"refresh_every": 0}),
        (PenaltyConfig, {"residual_tolerance": 0.0}),
        (TrainConfig, {"epochs": 0}),
        (TrainConfig, {"seeds": 0}),
        (TrainConfig, {"seed": -1}),
        (TrainConfig, {"evaluate_every": 0}),
        (TrainConfig, {"measure_every": 0}),
    ],
)
def test_a_meaningless_value_is_refused_by_name(section, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        section(**values)


def test_the_hash_is_of_the_content():
    same = from_mapping(dict(reversed(to_mapping(CONFIG).items())), where="test")
    assert config_hash(same) == config_hash(CONFIG)
    whole = dataclasses.replace(CONFIG, penalty=PenaltyConfig("l1", strength=1))
    real = dataclasses.replace(CONFIG, penalty=PenaltyConfig("l1", strength=1.0))
    assert config_hash(whole) == config_hash(real)


def dotted(mapping, prefix=""):
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_changes_the_hash():
    changes = [
        "name=other", "data.name=digits", "data.batch_size=7", "data.train_limit=7",
        "data.test_limit=7", "data.validation=7", "data.label_noise=0.7", "data.preprocessing=raw",
        "data.split=released", "data.augment=crop_flip", "data.subsets=own",
        "model.name=lenet", "model.hidden=[7]", "model.dropout=0.7",
        "model.depth=7", "model.width=7", "model.stem=cifar", "model.gain=0.7",
        "optimizer.name=adam", "optimizer.learning_rate=0.7", "optimizer.momentum=0.7",
        "optimizer.schedule=cosine", "optimizer.weight_decay=0.7", "optimizer.trained=head",
        "balance.metric=farms", "balance.assignment=sqrt", "balance.low=0.7", "balance.high=1.7",
        "balance.refresh_every=7", "balance.tuned=inner", "balance.window=7", "balance.samples=7",
        "balance.cols_per_row=0.7", "balance.min_eigenvalues=7", "train.measures=[tails]",
        "penalty.name=l2", "penalty.strength=0.7",
        "penalty.mode=proximal", "penalty.refresh=schedule", "penalty.refresh_every=7",
        "penalty.residual_tolerance=0.7", "train.epochs=7", "train.seeds=7", "train.seed=7",
        "train.evaluate_every=7", "train.measure_every=7", "train.seed_axis=map",
        "train.objective=mse", "train.label_scale=7", "train.features_decay=0.7",
        "train.stop=test below 7", "train.shard=batch",
        "paper_compat=[half_gradient]",
    ]  # fmt: skip
    default = ExperimentConfig("x")
    assert {change.partition("=")[0] for change in changes} == set(dotted(to_mapping(default)))
    hashes = {config_hash(apply_overrides(default, [change])) for change in changes}
    assert len(hashes | {config_hash(default)}) == len(changes) + 1
