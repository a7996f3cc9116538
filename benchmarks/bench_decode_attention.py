"""Attention of one new position of each row over the cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from cases import DECODE_ATTENTION, DecodeCase
from janus.kernels.decode_attention import SharedPrefix, decode_attention
from measure import Cost
from peers import flash_infer, sdpa
from timer import Call
from variants import Prepare, ours

CASES = DECODE_ATTENTION

PREFIXES = 2  # the prompt, and what stands in its place for guidance: rows take turns


def cost(case: DecodeCase) -> Cost:
    """Keys and values that any row sees, once; a product and a sum for each of their components and query."""
    language = case.language
    seen = sum(case.keys - start for start in case.starts)
    stored = seen - (case.rows - PREFIXES) * case.shared if case.shared else seen
    queries = 2 * case.rows * language.heads * language.head_width  # and results
    numbers = 2 * stored * language.kv_heads * language.head_width + queries
    return Cost(numbers * case.dtype.itemsize, 4 * seen * language.heads * language.head_width, case.dtype)


def inputs(case: DecodeCase, device: torch.device) -> tuple[Tensor, Tensor, Tensor, SharedPrefix | None]:
    """Query (B, H, d), keys and values (B, G, K, d) without the shared ones, and those."""
    language = case.language
    query = torch.randn(case.rows, language.heads, language.head_width, dtype=case.dtype, device=device)

    def stored(rows: int, length: int) -> Tensor:
        shape = 2, rows, language.kv_heads, length, language.head_width
        return torch.randn(shape, dtype=case.dtype, device=device)

    prefix = None
    if case.shared:
        prefix = SharedPrefix(
            *stored(PREFIXES, case.shared),
            lengths=torch.full((PREFIXES,), case.shared, device=device),
            rows=torch.arange(case.rows, device=device) % PREFIXES,
        )
    return query, *stored(case.rows, case.keys - case.shared), prefix


def whole(keys: Tensor, values: Tensor, prefix: SharedPrefix | None) -> tuple[Tensor, Tensor]:
    """All keys and values of each row: the shared ones are repeated."""
    if prefix is None:
        return keys, values
    return torch.cat((prefix.keys[prefix.rows], keys), 2), torch.cat((prefix.values[prefix.rows], values), 2)


def setup(case: DecodeCase, device: torch.device) -> dict[str, Prepare]:
    def kernel(
        query: Tensor, keys: Tensor, values: Tensor, prefix: SharedPrefix | None, starts: Tensor | None
    ) -> Tensor:
        return decode_attention(query, keys, values, starts=starts, prefix=prefix)

    def with_starts(prepare: Prepare) -> Prepare:
        def prepared(query: Tensor, keys: Tensor, values: Tensor, prefix: SharedPrefix | None) -> Call:
            starts = torch.tensor(case.starts, device=query.device) if any(case.starts) else None
            return prepare(query, keys, values, prefix, starts)

        return prepared

    def with_whole(prepare: Prepare) -> Prepare:
        """A peer's cache is laid out beforehand, as the peer would keep it."""

        def prepared(query: Tensor, keys: Tensor, values: Tensor, prefix: SharedPrefix | None) -> Call:
            return prepare(query, *whole(keys, values, prefix))

        return prepared

    peers = sdpa.decode(case.starts) | flash_infer.decode(case.starts, device, case.dtype)
    return {name: with_whole(prepare) for name, prepare in peers.items()} | {
        name: with_starts(prepare) for name, prepare in ours(kernel, device).items()
    }
