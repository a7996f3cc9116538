"""PyTorch's scaled_dot_product_attention, each of its backends by itself.

B rows, H heads, S positions, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from timer import Call
from variants import Prepare

Documents = Sequence[Sequence[int]]  # for each row the lengths of its sequences, which end it


def places(documents: Documents, length: int) -> list[tuple[int, int, int]]:
    """Row, first and last position + 1 of every sequence."""
    found = []
    for row, lengths in enumerate(documents):
        first = length - sum(lengths)
        for its_length in lengths:
            found.append((row, first, first + its_length))
            first += its_length
    return found


def numbered(documents: Documents, length: int, device: torch.device) -> Tensor:
    """Which sequence each position belongs to, (B, S): counted from 0 in each row, -1 for padding."""
    numbers = torch.full((len(documents), length), -1)
    for row, first, last in places(documents, length):
        numbers[row, first:last] = numbers[row].max() + 1
    return numbers.to(device)


def whole_rows(documents: Documents, length: int) -> bool:
    """Every row is one sequence without padding."""
    return all(list(row) == [length] for row in documents)


def _with(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    with sdpa_kernel(backend):
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped, **options)


def attention(
    documents: Documents, length: int, causal: bool, device: torch.device, dtype: torch.dtype
) -> dict[str, Prepare]:
    """The backends, and where rows are not whole, `sdpa-loop`: each sequence by itself."""
    whole = whole_rows(documents, length)
    backends = {"sdpa-math": SDPBackend.MATH}  # the first: what the others are compared with
    if device.type == "cpu":
        backends["sdpa-flash"] = SDPBackend.FLASH_ATTENTION
    else:
        backends["sdpa-efficient"] = SDPBackend.EFFICIENT_ATTENTION
        if dtype is not torch.float32:
            backends["sdpa-cudnn"] = SDPBackend.CUDNN_ATTENTION
            if whole:
                backends["sdpa-flash"] = SDPBackend.FLASH_ATTENTION

    def prepare(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Call:
        if whole:
            return partial(_with, backend, query, key, value, is_causal=causal)
        mask = dense_mask(numbered(documents, length, device), causal)
        return partial(_with, backend, query, key, value, attn_mask=mask)

    found: dict[str, Prepare] = {name: partial(prepare, backend) for name, backend in backends.items()}
    if not whole:
        found["sdpa-loop"] = partial(_loop, places(documents, length), causal)
    return found


def dense_mask(numbers: Tensor, causal: bool) -> Tensor:
    """(B, 1, S, S) bool. Padding sees itself: a query without any key is NaN in some kernels."""
    position = torch.arange(numbers.shape[1], device=numbers.device)
    mask = (numbers[:, None, :, None] == numbers[:, None, None, :]) & (numbers >= 0)[:, None, None, :]
    if causal:
        mask = mask & (position <= position[:, None])
    return mask | (position == position[:, None])


def _loop(
    sequences: Sequence[tuple[int, int, int]], causal: bool, query: Tensor, key: Tensor, value: Tensor
) -> Call:
    parts = [
        tuple(x[row : row + 1, :, first:last] for x in (query, key, value)) for row, first, last in sequences
    ]
    grouped = query.shape[1] != key.shape[1]

    def call() -> Tensor:
        """(T, H, d): the sequences one after the other, without padding."""
        attended = [
            F.scaled_dot_product_attention(*part, is_causal=causal, enable_gqa=grouped) for part in parts
        ]
        return torch.cat(attended, dim=2)[0].transpose(0, 1)

    return call


def decode(starts: Sequence[int]) -> dict[str, Prepare]:
    """One query for each row, (B, H, d), over keys (B, G, K, d) from `starts` on.

    `sdpa-padded` masks what lies before; `sdpa-rows` takes neighbors that begin alike together, without it.
    """

    def padded(query: Tensor, keys: Tensor, values: Tensor) -> Call:
        mask = None
        if any(starts):
            places = torch.arange(keys.shape[2], device=keys.device)
            mask = (places >= torch.tensor(starts, device=keys.device)[:, None])[:, None, None]
        attend = partial(
            F.scaled_dot_product_attention, attn_mask=mask, enable_gqa=query.shape[1] != keys.shape[1]
        )
        return lambda: attend(query[:, :, None], keys, values)[:, :, 0]

    def by_rows(query: Tensor, keys: Tensor, values: Tensor) -> Call:
        parts = []
        for start, alike in groupby(range(len(starts)), starts.__getitem__):
            rows = list(alike)
            run = slice(rows[0], rows[-1] + 1)
            parts.append((query[run, :, None], keys[run, :, start:], values[run, :, start:]))
        grouped = query.shape[1] != keys.shape[1]
        return lambda: torch.cat(
            [F.scaled_dot_product_attention(*part, enable_gqa=grouped)[:, :, 0] for part in parts]
        )

    return {"sdpa-padded": padded} | ({"sdpa-rows": by_rows} if any(starts) else {})
