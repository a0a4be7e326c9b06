"""``import spectral_jax`` is light, and ``spectral-jax doctor`` names what is slow and the fix."""

import json
import os
import subprocess
import sys

import pytest

import spectral_jax
from spectral_jax import _environment
from spectral_jax._doctor import examine, findings, render
from spectral_jax.cli import main

SOUND = {
    "versions": {"jaxlib": "0.10.1"},
    "devices": {"backend": "gpu", "count": {"NVIDIA H200": 1}, "error": None},
    "hardware": {"gpu": True, "tpu": False},
    "precision": {"default_dtype": "float64", "x64": True},
    "threads": {"cores": 16, "OPENBLAS_NUM_THREADS": "1", "XLA_FLAGS": None},
    "compilation_cache": "cache",
    "memory_maps": 1_000_000,
    "data": {"SPECTRAL_JAX_DATA": "data", "exists": True, "cache": "cache", "cached": False},
}


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_importing_the_package_does_not_import_jax():
    run = python("-c", "import spectral_jax, sys; print('jax' in sys.modules)")
    assert run.stdout.strip() == "False", run.stderr


def test_help_shows_examples_first_and_does_not_import_jax():
    blocked = "import sys; sys.modules['jax'] = None; import spectral_jax.cli as c; c.main(['-h'])"
    run = python("-c", blocked)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("examples:\n  spectral-jax analyze")


@pytest.mark.parametrize("command", ["analyze", "compress", "data", "doctor"])
def test_help_of_a_command_shows_its_own_examples(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    examples = capsys.readouterr().out.partition("usage:")[0]
    words = [line.split()[:2] for line in examples.splitlines() if "spectral-jax" in line]
    assert words == [["spectral-jax", command]] * len(words) and words


def test_rooms_load_on_first_use_and_are_listed():
    assert spectral_jax.cli is sys.modules["spectral_jax.cli"]
    assert {"cli", "linalg"} <= set(dir(spectral_jax))
    with pytest.raises(AttributeError, match="has no attribute 'linlag'"):
        _ = spectral_jax.linlag


@pytest.mark.parametrize(
    "words, hint",
    [
        (["dcotor"], "did you mean 'doctor'?"),
        (["doctor", "--jsn"], "did you mean '--json'?"),
        (["doctor", "--threads"], "there is --json; see spectral-jax doctor --help"),
        (["--json", "doctor"], "unknown '--json': it stands behind the command"),
        (["--jsn", "doctor"], "did you mean '--json'?"),
        (["train"], "there is doctor"),
        ([], "arguments are required: COMMAND"),
    ],
)
def test_wrong_usage_costs_one_line_with_a_hint_and_exit_code_2(words, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert hint in err and err.count("\n") == 1
    assert out == ""


def test_json_report_is_the_only_thing_on_stdout(capsys):
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["devices"] == {"backend": "cpu", "count": {"cpu": 8}, "error": None}
    assert report["threads"]["cores"] == os.cpu_count()
    assert set(report["versions"]) == {
        "spectral-jax",
        "python",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "numpy",
    }
    assert err == ""


def test_text_report_shows_every_finding_with_its_fix(capsys):
    assert main(["doctor"]) == 0
    out, _ = capsys.readouterr()
    for finding in examine()["findings"]:
        assert finding["what"] in out and f"fix: {finding['fix']}" in out


def test_a_sound_machine_has_no_findings():
    assert findings(SOUND) == []
    facts = SOUND | {"findings": []}
    assert render(facts).endswith("nothing to mend")


@pytest.mark.parametrize(
    "change, what, fix",
    [
        ({"devices": {"backend": None, "count": {}, "error": "no CUDA"}}, "no device", "unset"),
        ({"devices": {"backend": "cpu", "count": {"cpu": 1}}}, "a GPU is in", "spectral-jax[cuda]"),
        (
            {
                "devices": {"backend": "cpu", "count": {"cpu": 1}},
                "hardware": {"gpu": False, "tpu": False},
            },
            "CPU only",
            "presets smoke and small",
        ),
        (
            {"threads": {"cores": 2, "OPENBLAS_NUM_THREADS": None}},
            "many times slower",
            "OPENBLAS_NUM_THREADS=1",
        ),
        ({"precision": {"x64": False}}, "float64 is off", "jax.enable_x64"),
        ({"compilation_cache": None}, "not kept between", "JAX_COMPILATION_CACHE_DIR"),
        ({"memory_maps": 65_530}, "65530 memory maps", "jax.clear_caches()"),
        (
            {"data": {"SPECTRAL_JAX_DATA": None, "exists": False, "cached": False}},
            "no data folder",
            "data fetch",
        ),
        (
            {"data": {"SPECTRAL_JAX_DATA": "gone", "exists": False, "cached": True}},
            "is not a folder",
            "unset it",
        ),
    ],
)
def test_each_fault_is_found_alone_with_its_fix(change, what, fix):
    (finding,) = findings(SOUND | change)
    assert what in finding.what
    assert fix in finding.fix


@pytest.mark.parametrize("jaxlib, nested", [("0.11.0", True), ("0.11.1", False)])
def test_the_thread_finding_says_whether_the_release_nests_threads(jaxlib, nested):
    threads = {"cores": 2, "OPENBLAS_NUM_THREADS": None}
    (finding,) = findings(SOUND | {"threads": threads, "versions": {"jaxlib": jaxlib}})
    assert ("many times slower" in finding.what) == nested
    assert ("XLA's threads while OpenBLAS" in finding.why) == nested


@pytest.mark.parametrize(
    ("jaxlib", "backend", "flags", "wrong"),
    [
        ("0.10.2", "cpu", None, True),
        ("0.10.2", "cpu", "--xla_cpu_experimental_ynn_fusion_type=-reduce", False),
        ("0.10.2", "gpu", None, False),
        ("0.10.1", "cpu", None, False),
        ("0.11.0", "cpu", None, False),
    ],
)
def test_the_release_that_multiplies_wrongly_is_the_first_finding(jaxlib, backend, flags, wrong):
    """jax#39103; the numbers themselves: test_curvature_losses."""
    change = {
        "versions": {"jaxlib": jaxlib},
        "devices": {"backend": backend, "count": {"cpu": 1}, "error": None},
        "hardware": {"gpu": False, "tpu": False},
        "threads": SOUND["threads"] | {"XLA_FLAGS": flags},
    }
    fixes = [finding.fix for finding in findings(SOUND | change)] or [""]
    assert ["ynn_fusion_type" in fix for fix in fixes].count(True) == wrong
    assert ("ynn_fusion_type" in fixes[0]) == wrong


def test_where_memory_maps_are_not_counted_there_is_nothing_to_mend():
    assert findings(SOUND | {"memory_maps": None}) == []


def test_one_core_needs_no_thread_setting():
    assert findings(SOUND | {"threads": {"cores": 1, "OPENBLAS_NUM_THREADS": None}}) == []


def test_a_platform_without_its_plugin_is_a_finding_and_not_a_traceback():
    run = python("-m", "spectral_jax.cli", "doctor", "--json", JAX_PLATFORMS="nonesuch")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["findings"][0]["what"] == "JAX finds no device"


def test_what_the_command_sets_for_itself_is_not_taken_for_what_scripts_see(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    monkeypatch.setattr(_environment, "_before", {})
    monkeypatch.setattr(_environment, "version", lambda package: _environment.WRONG_SUMS)
    for _ in range(2):
        _environment.set_defaults()
        assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
        assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=x {_environment.RIGHT_SUMS}"
        assert _environment.given("OPENBLAS_NUM_THREADS") is None
        assert _environment.given("XLA_FLAGS") == "--xla_dump_to=x"


@pytest.mark.parametrize(
    ("jaxlib", "flags"), [("0.11.0", None), ("0.10.2", f"{_environment.LIBRARY_OF_SUMS}=")]
)
def test_other_releases_and_what_a_person_chose_are_left_alone(jaxlib, flags, monkeypatch):
    monkeypatch.setattr(_environment, "_before", {})
    monkeypatch.setattr(_environment, "version", lambda package: jaxlib)
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", flags)
    _environment.set_defaults()
    assert os.environ.get("XLA_FLAGS") == flags


@pytest.mark.slow
def test_the_sums_of_jaxlib_are_right_with_the_flag_that_is_set():
    """The example of jax#39103, as a command of ours would run it; wrong without the flag."""
    program = (
        "from spectral_jax._environment import set_defaults; set_defaults()\n"
        "import jax, jax.numpy as jnp\n"
        "i = jnp.arange(32_769.0)\n"
        "x = jnp.stack((i, 0 * i, 0 * i), axis=1)\n"
        "f = jax.jit(lambda x: jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x))\n"
        "print(float(f(x)[-1]))"
    )
    environment = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "1073741824.0", done.stderr
