"""Others that compute the same: PyTorch's own ways, and packages where they are installed."""

from __future__ import annotations

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


def family(implementation: str) -> str:
    """`sdpa` of `sdpa-flash`."""
    return implementation.partition("-")[0]


def installed(package: str) -> bool:
    return find_spec(package) is not None
