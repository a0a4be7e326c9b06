"""What every test may count on: calm LAPACK threads and eight fake CPU devices."""

import os

# Batched LAPACK in jaxlib runs over XLA's pool while OpenBLAS threads too: slow, and on large
# hosts unsafe (jax#39292). It is read when jaxlib loads, so it comes before the import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

# The option, not XLA_FLAGS: subprocesses that tests start must see the machine as users do.
jax.config.update("jax_num_cpu_devices", 8)

pytest.register_assert_rewrite("tests.contract")


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile in half the time, for tests of programs that run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
