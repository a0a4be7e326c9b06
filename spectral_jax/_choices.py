"""Options of public functions that are names, refused in one way; loads without NumPy."""

from collections.abc import Iterable
from typing import Any


def check_choice(choices: Iterable[str | None], **options: Any) -> None:
    """Raise ``ValueError`` for an option that is none of the ``choices``.

    >>> check_choice(("svd", "gram"), method="qr")
    Traceback (most recent call last):
    ValueError: method='qr': choose 'svd' or 'gram'
    """
    *others, last = map(repr, known := tuple(choices))
    told = f"{', '.join(others)} or {last}" if others else last
    for name, value in options.items():
        if not isinstance(value, str | None) or value not in known:
            raise ValueError(f"{name}={value!r}: choose {told}")
