"""PyTorch's FlexAttention, compiled. Its block mask is made beforehand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from peers.sdpa import Documents, numbered, whole_rows
from timer import Call
from variants import Prepare

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # row, head, positions of query and key -> bool


def before(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def seeing(numbers: Tensor, causal: bool) -> Sees:
    """Each position sees those of its own sequence, (B, S) of `numbered`; nobody sees padding."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (numbers[row, query] == numbers[row, key]) & (numbers[row, key] >= 0)
        return same & before(row, head, query, key) if causal else same

    return sees


def attention(documents: Documents, length: int, causal: bool, device: torch.device) -> dict[str, Prepare]:
    """On a GPU only: on a CPU it takes tens of seconds to compile, and has no backward pass."""
    if device.type != "cuda":
        return {}
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def prepare(query: Tensor, key: Tensor, value: Tensor) -> Call:
        block_mask = None
        if not whole_rows(documents, length):
            sees = seeing(numbered(documents, length, device), causal)
            block_mask = create_block_mask(sees, len(documents), None, length, length, device=device)
        elif causal:
            block_mask = create_block_mask(before, None, None, length, length, device=device)
        grouped = query.shape[1] != key.shape[1]
        return partial(compiled, query, key, value, block_mask=block_mask, enable_gqa=grouped)

    return {"flex": prepare}
