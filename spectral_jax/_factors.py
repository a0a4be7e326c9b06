"""When two factors are fewer parameters than the matrix they stand for."""

from math import prod


def split_refusal(shape: tuple[int, ...], rank: int) -> str:
    """Why two factors of that rank would not save parameters; an empty string if they would.

    >>> split_refusal((1000, 10), 10)
    '10 x (1000 + 10) parameters in two factors are no fewer than 1000 x 10 in one'
    """
    m, n = prod(shape[:-1]), shape[-1]
    if rank < 1:
        return "no singular value is kept: two factors of rank 0 would cut the network"
    if rank * (m + n) >= m * n:
        return f"{rank} x ({m} + {n}) parameters in two factors are no fewer than {m} x {n} in one"
    return ""
