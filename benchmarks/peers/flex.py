"""PyTorch's FlexAttention, compiled. Its block mask is made beforehand."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from peers.sdpa import Documents, numbered, whole_rows
from timer import Call
from variants import Prepare


def attention(documents: Documents, length: int, causal: bool, device: torch.device) -> dict[str, Prepare]:
    """On a GPU only: on a CPU it takes tens of seconds to compile, and has no backward pass."""
    if device.type != "cuda":
        return {}
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def prepare(query: Tensor, key: Tensor, value: Tensor) -> Call:
        numbers = numbered(documents, length, device)

        def sees(row: Tensor, head: Tensor, query_position: Tensor, key_position: Tensor) -> Tensor:
            same = numbers[row, query_position] == numbers[row, key_position]
            return same & (query_position >= key_position) if causal else same

        def before(row: Tensor, head: Tensor, query_position: Tensor, key_position: Tensor) -> Tensor:
            return query_position >= key_position

        whole = whole_rows(documents, length)
        block_mask = None
        if not whole:
            block_mask = create_block_mask(sees, len(documents), None, length, length, device=device)
        elif causal:
            block_mask = create_block_mask(before, None, None, length, length, device=device)
        grouped = query.shape[1] != key.shape[1]
        return partial(compiled, query, key, value, block_mask=block_mask, enable_gqa=grouped)

    return {"flex": prepare}
