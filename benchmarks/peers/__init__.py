"""Others that compute the same: PyTorch's own ways, and packages where they are installed."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec

# What --peers may name: the beginnings of implementations' names, ours first.
FAMILIES = (
    "janus",
    "eager",
    "compiled",
    "sdpa",
    "varlen",
    "flex",
    "flash_attn",
    "flashinfer",
    "cdist",
    "einsum",
    "cuvs",
    "multinomial",
    "transformers",
    "original",
)
# What is no part of PyTorch, and the package that it is of.
PACKAGES = {
    "flash_attn": "flash_attn",
    "flashinfer": "flashinfer",
    "cuvs": "cuvs",
    "transformers": "transformers",
    "original": "transformers",
}


def family(implementation: str) -> str:
    """`sdpa` of `sdpa-flash`."""
    return implementation.partition("-")[0]


def installed(package: str) -> bool:
    return find_spec(package) is not None


@functools.cache
def versions(implementation: str) -> str:
    """Of Python, and of the implementation's own package: "python 3.12.3, transformers 5.0.0"."""
    package = PACKAGES.get(family(implementation))
    found = [f"python {platform.python_version()}"]
    if package is not None:
        found += [
            f"{name} {version(name)}" for name in sorted(set(packages_distributions().get(package, ())))
        ]
    return ", ".join(found)
