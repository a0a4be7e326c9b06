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


def compile_quickly() -> None:
    """Compile with XLA's older CPU emitters: what takes most of the time of a test, in half of it.

    An environment that has XLA_FLAGS, were they empty, keeps them: `XLA_FLAGS= pytest` tests what
    users compile. JAX 0.12 has the newer emitters only, and dies of a flag it does not know.
    """
    if "XLA_FLAGS" in os.environ or jax.__version_info__ >= (0, 12):
        return
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
    jax.devices()  # reads them
    del os.environ["XLA_FLAGS"]


compile_quickly()


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile in half the time, for tests of programs that run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
