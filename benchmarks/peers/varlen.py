"""Attention over sequences one after the other, without padding: flash-attn's, and the one within PyTorch.

Queries, keys and values are (T, H, d), T positions of all sequences together; they are packed beforehand.
Sources: `flash_attn_varlen_func` of flash-attn 2, `torch.nn.attention.varlen` of PyTorch 2.10.
"""

from __future__ import annotations

import inspect
from functools import partial

import torch
from torch import Tensor

from peers import installed
from peers.sdpa import Documents, numbered, places, whole_rows
from timer import Call
from variants import Prepare


def packed(x: Tensor, documents: Documents) -> Tensor:
    """(B, H, S, d) -> (T, H, d)."""
    return x.transpose(1, 2)[numbered(documents, x.shape[2], x.device) >= 0]


def boundaries(documents: Documents, length: int, device: torch.device) -> tuple[Tensor, int]:
    """Where sequences begin and end in T, (N + 1,) int32, and the longest."""
    lengths = [last - first for _, first, last in places(documents, length)]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    return ends.to(device, torch.int32), max(lengths)


def attention(
    documents: Documents, length: int, causal: bool, device: torch.device, dtype: torch.dtype
) -> dict[str, Prepare]:
    """`varlen`, PyTorch's, where rows are not whole, and `flash_attn`, for all."""
    if device.type != "cuda" or dtype is torch.float32:
        return {}
    whole = whole_rows(documents, length)

    def flash(query: Tensor, key: Tensor, value: Tensor) -> Call:
        from flash_attn import flash_attn_func, flash_attn_varlen_func

        if whole:
            by_position = (x.transpose(1, 2) for x in (query, key, value))
            attend = partial(flash_attn_func, *by_position, causal=causal)
            return lambda: attend().transpose(1, 2)
        ends, longest = boundaries(documents, length, device)
        tensors = (packed(x, documents) for x in (query, key, value))
        return partial(flash_attn_varlen_func, *tensors, ends, ends, longest, longest, causal=causal)

    def within_torch(query: Tensor, key: Tensor, value: Tensor) -> Call:
        from torch.nn.attention.varlen import varlen_attn

        # How a causal mask is asked for changed after PyTorch 2.10.
        named = "is_causal" in inspect.signature(varlen_attn).parameters
        options = {"is_causal": causal} if named else {"window_size": (-1, 0 if causal else -1)}
        ends, longest = boundaries(documents, length, device)
        tensors = (packed(x, documents) for x in (query, key, value))
        return partial(varlen_attn, *tensors, ends, ends, longest, longest, **options)

    found: dict[str, Prepare] = {}
    if not whole and installed("torch.nn.attention.varlen"):
        found["varlen"] = within_torch
    if installed("flash_attn"):
        found["flash_attn"] = flash
    return found
