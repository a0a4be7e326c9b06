"""What every test may count on: calm LAPACK threads, eight fake CPU devices, quick compilation.

``pytest --room linalg`` runs what is about one room: its documented examples, its cases of the
contract and the files of tests of which it is the highest room that they import.
"""

import gc
import os
from contextlib import contextmanager

# Batched LAPACK in jaxlib runs over XLA's pool while OpenBLAS threads too: slow, and on large
# hosts unsafe (jax#39292). It is read when jaxlib loads, so it comes before the import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402
from xdist.scheduler import LoadFileScheduling  # noqa: E402

from tests.floors import FLOOR, rooms_tested_by  # noqa: E402

# The option, not XLA_FLAGS: subprocesses that tests start must see the machine as users do.
jax.config.update("jax_num_cpu_devices", 8)

pytest.register_assert_rewrite("tests.contract")


def pytest_addoption(parser):
    parser.addoption(
        "--room", metavar="NAME", help="the tests of one room: linalg, experiments.runs"
    )


def pytest_configure(config):
    """What the tests of a room compile is kept for their next run; a whole run trusts no cache."""
    config.pluginmanager.register(_DocumentedExamples())
    room = config.getoption("room")
    if room is None:
        return
    if room not in FLOOR:
        raise pytest.UsageError(f"--room {room}: choose one of {', '.join(FLOOR)}")
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # A file that a killed run left half written is compiled anew.
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache")


def pytest_ignore_collect(collection_path, config):
    """Files of tests that are not of the room need not even be imported; the contract is of all."""
    room = config.getoption("room")
    skips = room is not None and collection_path.match("test_*.py")
    if skips and collection_path.name != "test_contract.py":
        return True if room not in rooms_tested_by(collection_path) else None


class _Scheduling(LoadFileScheduling):
    """A worker takes a file at a time, and of the contract a function at a time."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        case, dash, _ = nodeid.rpartition("-")
        return case if dash and file.endswith("test_contract.py") else file


def pytest_xdist_make_scheduler(config, log):
    return _Scheduling(config, log)


def pytest_collection_modifyitems(config, items):
    # The contract in its small parts comes last, so that the workers end together.
    items.sort(key=lambda item: item.path.name == "test_contract.py")
    if room := config.getoption("room"):
        others = [item for item in items if room not in _rooms(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if room in _rooms(item)]


def _rooms(item):
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if item.path.name == "test_contract.py" and "case" in parameters:
        return {parameters["case"].covers.partition(".")[0]}
    return rooms_tested_by(item.path)


def pytest_collection_finish():
    """Tracing makes garbage by the million: the collector need not walk all of jax for it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


# Compiling is what tests spend their time on, and XLA's older CPU emitters do it in half the time,
# and in half of that where little is optimised. JAX 0.12 has the newer ones only, and XLA dies of a
# flag it does not know. An environment that has XLA_FLAGS, were they empty, keeps them and what is
# optimised: `XLA_FLAGS= pytest` tests what users compile.
AS_USERS_COMPILE = "XLA_FLAGS" in os.environ
OLDER_EMITTERS = (
    {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"}
    if not AS_USERS_COMPILE and jax.__version_info__ < (0, 12)
    else {}
)
with pytest.MonkeyPatch.context() as patch:
    for name, flags in OLDER_EMITTERS.items():
        patch.setenv(name, flags)
    jax.devices()  # reads them; the processes that tests start do not see them


@contextmanager
def _quickly_compiled():
    jax.config.update("jax_disable_most_optimizations", not AS_USERS_COMPILE)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile in half the time, for tests of programs that run for milliseconds."""
    with _quickly_compiled():
        yield


class _DocumentedExamples:
    """A plugin, since the hooks of this file are called for the items below its folder alone.

    CI runs the examples as users compile them too, in `pytest spectral_jax`: it reads no file here.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        if not isinstance(item, pytest.DoctestItem):
            return (yield)
        with _quickly_compiled():
            return (yield)


@pytest.fixture(scope="session")
def quick_environment():
    """The environment of a process that is to compile quickly too."""
    quick = {} if AS_USERS_COMPILE else {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {**os.environ, **OLDER_EMITTERS, **quick}


@pytest.fixture
def compilations():
    """One entry for each program that XLA has compiled in the test so far."""
    seen = []

    def listen(event, duration, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(about)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)
