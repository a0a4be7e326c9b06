"""Which kernel a bias or a norm belongs to, so that it can share that kernel's learning rate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from spectral_jax.weights import Block

_NORM = re.compile(r"(batch|layer|group|rms)?_?norm(alization)?|(?<![a-z])(bn|ln)(?![a-z])")
_KERNEL = re.compile(r"conv([123]_?d(?=_|$))?|dense|linear|(?<![a-z])fc")


def owners(
    leaves: Iterable[str], kernels: Iterable[str], layout: Sequence[Block] | None = None
) -> dict[str, str]:
    """Map the names of parameters to the kernel that they belong to; others are left out.

    A kernel belongs to itself, and a leaf of the same module (a bias) to the module's kernel. A
    norm belongs to the kernel in whose block of ``layout`` it is. Without a layout it belongs to
    the one neighbouring kernel whose name differs only in the kind of layer (``conv1`` and ``bn1``,
    ``stem`` and ``stem_norm``, ``Conv_0`` and ``BatchNorm_0``), or, among numbered modules, to the
    one with the number before.

    >>> owners(["stem/kernel", "stem/bias", "stem_norm/scale", "token"], ["stem/kernel"])
    {'stem/kernel': 'stem/kernel', 'stem/bias': 'stem/kernel', 'stem_norm/scale': 'stem/kernel'}
    """
    kernels = dict.fromkeys(kernels)
    modules: dict[str, list[str]] = {}
    for kernel in kernels:
        modules.setdefault(_parent(kernel), []).append(kernel)
    norms = {block.norm: block.path for block in layout or () if block.norm and block.path}
    found = {}
    for leaf in leaves:
        module = _parent(leaf)
        if leaf in kernels:
            found[leaf] = leaf
        elif module in norms:
            found[leaf] = norms[module]
        else:
            candidates = modules.get(module) or _beside(module, modules)
            if len(candidates) == 1:
                found[leaf] = candidates[0]
    return found


def _beside(module: str, modules: dict[str, list[str]]) -> list[str]:
    """The kernels that a module without a kernel may be the norm of."""
    parent, name = _parent(module), _last(module)
    if name.isdecimal():
        return modules.get(module[: len(module) - len(name)] + str(int(name) - 1), [])
    bare = _without(_NORM, name)
    if bare == name.lower():
        return []
    same = [
        m
        for m in modules
        if _parent(m) == parent and bare in (_without(_KERNEL, _last(m)), _last(m))
    ]
    convolutions = [m for m in same if "conv" in _last(m).lower()]
    return [kernel for m in convolutions or same for kernel in modules[m]]


def _without(words: re.Pattern, name: str) -> str:
    return words.sub("", name.lower()).strip("_")


def _parent(path: str) -> str:
    return re.sub(r"(^|[/.])[^/.]*$", "", path)


def _last(path: str) -> str:
    return re.split(r"[/.]", path)[-1]
