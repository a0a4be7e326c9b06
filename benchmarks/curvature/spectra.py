"""Whole spectra by the kernel route, largest pairs and densities, beside PyTorch tools."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import eigsh as scipy_eigsh

from benchmarks.curvature import problems
from benchmarks.harness import NOTHING, Table, Target, one_core, row
from spectral_jax.curvature import ggn_spectrum, hessian, objective, stored
from spectral_jax.linalg import eigsh, spectral_density


class Size(NamedTuple):
    n: int
    width: int
    top: int
    krylov: Callable[[], problems.Problem]
    dense: Callable[[], problems.Problem]
    large: Callable[[], problems.Problem]
    pairs: int
    steps: int


FULL = Size(
    n=2000,
    width=600,
    top=100,
    krylov=partial(problems.lenet, n=500),
    dense=partial(problems.dense, n=500, width=600),
    large=partial(problems.lenet, n=10_000),
    pairs=10,
    steps=50,
)
SMOKE = Size(
    n=12,
    width=4,
    top=3,
    krylov=partial(problems.dense, n=6, width=4),
    dense=partial(problems.dense, n=5, width=3),
    large=partial(problems.dense, n=7, width=4),
    pairs=2,
    steps=3,
)
PROBES = 2
COMPLETE, PAIRS = Target(">=", 50), Target(">=", 3)
TOLERANCE = 1e-3


class Run(NamedTuple):
    seconds: float
    values: np.ndarray

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s"


def complete(size: Size) -> Table:
    """Every non-zero eigenvalue of the Gauss-Newton matrix against a solver's largest."""
    problem = problems.dense(size.n, size.width)

    def ours() -> np.ndarray:
        arguments = problem.model, problems.LOSS, problem.params, problem.data
        return np.asarray(ggn_spectrum(*arguments).values)

    with one_core():
        found = _second(ours)
        peer = None
        if problems.TORCH:
            peer = _timed(partial(_torch_values, problem, kind="GGN", k=size.top))
    ratio = peer.seconds / found.seconds if peer else None
    rows = [
        row(
            f"{problem.name}, n = {size.n}: {found.values.size} values, against the {size.top} "
            "largest",
            found,
            peer or "not installed",
            f"{ratio:.0f}" if ratio else NOTHING,
            COMPLETE,
            ratio,
        )
    ]
    if peer:
        error = np.max(np.abs(peer.values / found.values[: size.top] - 1))
        rows.append(row("largest relative difference of the values in both", f"{error:.0e}"))
    note = (
        "float32 network. The peer is curvlinops' GGN in SciPy's `eigsh` at its default tolerance; "
        "one run each, after one that compiles ours."
    )
    return Table("Complete Gauss-Newton spectrum, one core", note, rows)


def largest(size: Size) -> Table:
    """The largest Hessian pairs of networks, by the tools people use for them."""
    note = (
        f"float32, tolerance {TOLERANCE:g}. Ours is `eigsh(stored(op), copies=False)`: no peer "
        "looks for copies of repeated values either; what that costs stands last. curvlinops is in "
        "SciPy's `eigsh`; hessian-eigenthings takes the fewest Lanczos steps of 20, 40, 80, ... "
        "whose residuals pass; PyHessian's power iteration knows the largest magnitudes, and tests "
        "the change of a value, not its residual. LeNets of one shape with weights of their own; "
        "the many examples with the fastest peer alone. One run each, after one that compiles ours."
    )
    peers = {
        "curvlinops, SciPy": ("curvlinops", partial(_torch_values, kind="Hessian", which="LA")),
        "hessian-eigenthings": ("hessian_eigenthings", _eigenthings),
        "PyHessian": ("pyhessian", _pyhessian),
    }
    fastest = {"curvlinops, SciPy": peers["curvlinops, SciPy"]}
    rows = [
        *_pairs(size.krylov(), size.pairs, peers, looked=True),
        *_pairs(size.dense(), size.pairs, peers, looked=True),
        *_pairs(size.large(), size.pairs, fastest, looked=False),
    ]
    return Table("Largest Hessian pairs, one core", note, rows)


def _pairs(
    problem: problems.Problem, k: int, peers: dict[str, tuple[str, Callable]], *, looked: bool
) -> Iterator[tuple[str, ...]]:
    """The largest pairs of one Hessian by each tool, and ours with a look for copies."""
    what = f"{problem.name}, {len(problem.data[1])} examples: {k} largest Hessian pairs"
    ours = partial(_largest, objective(problem.model, problems.LOSS), problem, k)
    timed = {
        name: partial(peer, problem, k=k, tol=TOLERANCE)
        for name, (package, peer) in peers.items()
        if _installed(package)
    }
    yield from _beside(what, partial(ours, copies=False), timed)
    if looked:
        with one_core():
            yield row(f"{what}, and a look for copies", _second(partial(ours, copies=True)))


def density(size: Size) -> Table:
    """The spectral density of a Hessian by as many Lanczos steps everywhere."""
    problem = size.dense()
    op = stored(hessian(objective(problem.model, problems.LOSS), problem.params, problem.data))

    def ours() -> np.ndarray:
        found = spectral_density(op, jax.random.key(0), probes=PROBES, steps=size.steps)
        return np.asarray(found.nodes)

    peers = {
        "hessian-eigenthings": ("hessian_eigenthings", _eigenthings_density),
        "curvlinops": ("curvlinops", _curvlinops_density),
    }
    note = (
        f"float32, {PROBES} probes. hessian-eigenthings keeps its basis orthogonal by default up "
        "to 50 steps, as ours does, and curvlinops never does, so its copies of converged nodes "
        "are not worth as much. PyHessian's `density` calls `torch.eig`, which PyTorch no longer "
        "has."
    )
    what = f"{problem.name}, {len(problem.data[1])} examples: density, {size.steps} steps"
    timed = {
        name: partial(peer, problem, size.steps)
        for name, (package, peer) in peers.items()
        if _installed(package)
    }
    return Table("Spectral density, one core", note, list(_beside(what, ours, timed)))


def _beside(
    what: str, ours: Callable[[], np.ndarray], peers: dict[str, Callable[[], np.ndarray]]
) -> Iterator[tuple[str, ...]]:
    """A row a peer; ours is timed once, after a run that compiles it."""
    with one_core():
        found = _second(ours)
        for name, peer in peers.items():
            theirs = _timed(peer)
            ratio = theirs.seconds / found.seconds
            yield row(f"{what}; {name}", found, theirs, f"{ratio:.1f}", PAIRS, ratio)
    if not peers:
        yield row(what, found, "not installed")


def _installed(package: str) -> bool:
    """Whether the package is there; it is imported, so that no time counts that."""
    found = find_spec(package) is not None
    if found:
        import_module(package)
    return found


def _largest(
    loss: Callable[..., Any], problem: problems.Problem, k: int, *, copies: bool
) -> np.ndarray:
    op = stored(hessian(loss, problem.params, problem.data))
    found = eigsh(op, k, which="LA", tol=TOLERANCE, copies=copies)
    return np.asarray(jax.block_until_ready(found.values))


def _eigenthings_operator(problem: problems.Problem) -> Any:
    import torch
    from hessian_eigenthings import HessianOperator, supervised_loss

    network, *batch = problems.torch_network(problem)
    return HessianOperator(network, [batch], supervised_loss(torch.nn.CrossEntropyLoss()))


def _eigenthings(problem: problems.Problem, *, k: int, tol: float) -> np.ndarray:
    from hessian_eigenthings import lanczos

    op, steps = _eigenthings_operator(problem), 2 * k
    while True:
        options = dict(k=k, max_iter=steps, tol=tol, which="LA", reorthogonalize=True, seed=0)
        found = lanczos(op, **options)
        if bool(found.converged.all()):
            return found.eigenvalues.numpy()
        steps *= 2


def _eigenthings_density(problem: problems.Problem, steps: int) -> np.ndarray:
    from hessian_eigenthings import spectral_density as peer

    found = peer(_eigenthings_operator(problem), num_runs=PROBES, lanczos_steps=steps, seed=0)
    return found.density.numpy()


def _curvlinops_density(problem: problems.Problem, steps: int) -> np.ndarray:
    from curvlinops import lanczos_approximate_spectrum

    op = problems.torch_operator(problem, "Hessian")
    return lanczos_approximate_spectrum(op, steps, num_repeats=PROBES)[1]


def _pyhessian(problem: problems.Problem, *, k: int, tol: float) -> np.ndarray:
    import torch
    from pyhessian import hessian as peer

    network, *batch = problems.torch_network(problem)
    found = peer(network, torch.nn.CrossEntropyLoss(), data=tuple(batch), cuda=False)
    return np.asarray(found.eigenvalues(maxIter=1000, tol=tol, top_n=k)[0])


def _torch_values(problem: problems.Problem, *, kind: str, k: int, **options: Any) -> np.ndarray:
    operator = _numpy_operator(problems.torch_operator(problem, kind))
    return np.sort(scipy_eigsh(operator, k, return_eigenvectors=False, **options))[::-1]


def _numpy_operator(op: Any) -> LinearOperator:
    import torch

    def product(x: np.ndarray) -> np.ndarray:
        return (op @ torch.tensor(x.ravel(), dtype=torch.float32)).numpy()

    return LinearOperator(tuple(op.shape), matvec=product, dtype=np.float32)


def _second(call: Callable[[], np.ndarray]) -> Run:
    """The second of two runs: the first compiles."""
    call()
    return _timed(call)


def _timed(call: Callable[[], np.ndarray]) -> Run:
    start = time.perf_counter()
    values = call()
    return Run(time.perf_counter() - start, values)
