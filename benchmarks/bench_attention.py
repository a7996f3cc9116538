"""Attention over whole sequences: pictures, prompts, and rows with padding or several documents."""

from __future__ import annotations

import torch
from torch import Tensor

import compare
from cases import ATTENTION, AttentionCase
from janus.kernels.attention import attention
from measure import Cost
from peers import flash_infer, flex, sdpa, varlen
from timer import Call
from variants import Prepare, ours

CASES = ATTENTION


def cost(case: AttentionCase) -> Cost:
    """Queries, keys, values and results; a product and a sum, twice, for each component of each pair."""
    lengths = [length for row in case.documents for length in row]
    pairs = sum(length * (length + 1) // 2 if case.causal else length**2 for length in lengths)
    numbers = 2 * sum(lengths) * (case.heads + case.kv_heads) * case.head_width
    return Cost(numbers * case.dtype.itemsize, 4 * pairs * case.heads * case.head_width, case.dtype)


def inputs(case: AttentionCase, device: torch.device) -> tuple[Tensor, ...]:
    """Query (B, H, S, d), key and value (B, G, S, d): views of (B, S, H, d), as projections leave them."""
    return tuple(
        torch.randn(
            case.rows, case.length, heads, case.head_width, dtype=case.dtype, device=device
        ).transpose(1, 2)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )


def setup(case: AttentionCase, device: torch.device) -> dict[str, Prepare]:
    rows = case.documents, case.length, case.causal, device

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, offsets: Tensor | None
    ) -> Tensor:
        return attention(query, key, value, causal=case.causal, lengths=lengths, offsets=offsets)

    def with_rows(prepare: Prepare) -> Prepare:
        """Where sequences lie is on the device beforehand."""

        def prepared(query: Tensor, key: Tensor, value: Tensor) -> Call:
            lengths = offsets = None
            if case.packed:
                offsets = torch.tensor([0, *case.documents[0]]).cumsum(0).to(query.device, torch.int32)
            elif case.padded:
                totals = [sum(row) for row in case.documents]
                lengths = torch.tensor(totals, dtype=torch.int32, device=query.device)
            return prepare(query, key, value, lengths, offsets)

        return prepared

    return (
        sdpa.attention(*rows, case.dtype)
        | flex.attention(*rows)
        | varlen.attention(*rows, case.dtype)
        | flash_infer.attention(*rows, case.dtype)
        | {name: with_rows(prepare) for name, prepare in ours(kernel, device).items()}
    )


def problem(
    case: AttentionCase, given: tuple[Tensor, ...], name: str, result: Tensor, expected: Tensor
) -> str | None:
    """Only real positions count; some peers return nothing else, (T, H, d)."""

    def real(x: Tensor) -> Tensor:
        return varlen.packed(x, case.documents) if x.ndim == 4 else x

    return compare.problem(real(result), real(expected), case.dtype)
