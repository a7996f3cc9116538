"""Rotary positions, and the write into the cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cases import QUESTION, ROTARY, LanguageCase
from janus.kernels.rotary import rotate_and_store
from measure import Cost
from timer import Call
from variants import Prepare, ours

CASES = ROTARY


def cost(case: LanguageCase) -> Cost:
    """Queries, keys and values, read and written; two tables; three operations a number that turns."""
    language, positions = case.language, case.rows * case.positions
    turned = positions * (language.heads + language.kv_heads) * language.head_width
    values = positions * language.kv_heads * language.head_width
    tables = 2 * case.positions * language.head_width
    return Cost((2 * (turned + values) + tables) * case.dtype.itemsize, 3 * turned, torch.float32)


def inputs(case: LanguageCase, device: torch.device) -> tuple[Tensor, ...]:
    """One projection gives queries, keys and values; the last positions of the cache are free."""
    language = case.language
    heads = language.heads, language.kv_heads, language.kv_heads
    merged = torch.randn(
        case.rows, case.positions, sum(heads), language.head_width, dtype=case.dtype, device=device
    )
    query, key, value = (part.transpose(1, 2) for part in merged.split(heads, dim=2))
    first = QUESTION - case.positions
    angles = torch.randn(1, 1, case.positions, language.head_width // 2, device=device).repeat(1, 1, 1, 2)
    cosines, sines = angles.cos().to(case.dtype), angles.sin().to(case.dtype)
    cache = torch.zeros(
        case.rows, language.kv_heads, QUESTION, language.head_width, dtype=case.dtype, device=device
    )
    return query, key, value, cosines, sines, cache, cache, torch.tensor([first], device=device)


def turn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosines: Tensor,
    sines: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
) -> Tensor:
    """As it is usually written for a static cache."""

    def rotated(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cosines + torch.cat((-second, first), dim=-1) * sines

    places = position + torch.arange(key.shape[2], device=key.device)
    key_cache.index_copy_(2, places, rotated(key))
    value_cache.index_copy_(2, places, value)
    return rotated(query)


def with_own_caches(function: Callable[..., Tensor]) -> Prepare:
    """Each implementation writes into caches of its own, or one that writes nothing would look right."""

    def prepare(*arguments: Tensor) -> Call:
        *others, key_cache, value_cache, position = arguments
        key_cache, value_cache = key_cache.clone(), value_cache.clone()
        return lambda: (
            function(*others, key_cache, value_cache, position),
            key_cache,
            value_cache,
        )

    return prepare


def setup(case: LanguageCase, device: torch.device) -> dict[str, Prepare]:
    def unpacked(prepare: Prepare) -> Callable[..., Tensor]:
        return lambda *arguments: prepare(*arguments)()

    implementations = {"eager": turn, "compiled": torch.compile(turn, dynamic=False)}
    implementations |= {name: unpacked(prepare) for name, prepare in ours(rotate_and_store, device).items()}
    return {name: with_own_caches(function) for name, function in implementations.items()}
