"""What every test may count on: calm LAPACK threads, eight fake CPU devices, quick compilation."""

import os

# Batched LAPACK in jaxlib runs over XLA's pool while OpenBLAS threads too: slow, and on large
# hosts unsafe (jax#39292). It is read when jaxlib loads, so it comes before the import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

# The option, not XLA_FLAGS: subprocesses that tests start must see the machine as users do.
jax.config.update("jax_num_cpu_devices", 8)

pytest.register_assert_rewrite("tests.contract")


# Compiling is what tests spend their time on, and XLA's older CPU emitters do it in half the time.
# JAX 0.12 has the newer ones only, and XLA dies of a flag it does not know. An environment that has
# XLA_FLAGS, were they empty, keeps them: `XLA_FLAGS= pytest` tests what users compile.
OLDER_EMITTERS = (
    {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"}
    if "XLA_FLAGS" not in os.environ and jax.__version_info__ < (0, 12)
    else {}
)
with pytest.MonkeyPatch.context() as patch:
    for name, flags in OLDER_EMITTERS.items():
        patch.setenv(name, flags)
    jax.devices()  # reads them; the processes that tests start do not see them


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile in half the time, for tests of programs that run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def quick_environment():
    """The environment of a process that is to compile quickly too."""
    return {**os.environ, **OLDER_EMITTERS, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


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
