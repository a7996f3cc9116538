"""Attention, fused, forward and backward: neither pass holds anything of size S x K in memory.

B rows, H heads, G key-value heads (each serves H / G heads), S queries, K keys, d head size. Queries are
the last S of the K positions. Source: FlashAttention-2 (Dao, 2023).

Two facts, known only when a kernel runs, say which keys a query sees, so that one compiled kernel serves all
cases: `spans`, (B or 1, 2, K) int32, where the keys of each position's own document begin and end (both are
the same for padding, which has none), and `ahead`, how many keys beyond its own a query sees, none if causal.
The relation is symmetric but for the latter, so a key finds its queries in the same table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from janus.kernels import choice
from janus.kernels.decode_attention import decode_attention_reference
from janus.kernels.launch import DTYPES, blocks, kernel, launch, power_of_two, tl

LOG2_E = math.log2(math.e)  # exponentials are taken in base 2, as the hardware does
FEW = 16  # queries over keys before them that a CPU attends to one by one
STEP, WIDEST, WIDEST_FLOAT32 = 16, 256, 128  # head sizes that the kernels take


# --- what is asked for ---


def _check(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> None:
    if any(tensor.ndim != 4 for tensor in (query, key, value)):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
        raise ValueError(f"query must be (B, H, S, d), key and value (B, G, K, d), not {shapes}")
    rows, heads, queries, width = query.shape
    groups, keys = key.shape[1:3]
    if key.shape != (rows, groups, keys, width) or value.shape != key.shape:
        raise ValueError(
            f"key and value must both be ({rows}, G, K, {width}) for a query of {tuple(query.shape)}, "
            f"not {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if groups == 0 or heads % groups:
        raise ValueError(f"{heads} heads cannot be shared out among {groups} key-value heads")
    if width == 0:
        raise ValueError("the head size must be at least 1")
    if not query.is_floating_point() or not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            "query, key and value must be floats of one dtype, "
            f"not {query.dtype}, {key.dtype} and {value.dtype}"
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            f"query, key and value are on different devices: {query.device}, {key.device} and {value.device}"
        )
    if causal and queries > keys:
        raise ValueError(f"{queries} causal queries cannot be the last of {keys} keys")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number, not {scale}")


def _check_integers(name: str, tensor: Tensor, wanted: str) -> None:
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be {wanted} integers, not {tuple(tensor.shape)} {tensor.dtype}")


def _readable(tensor: Tensor) -> bool:
    """Whether its values can be looked at without waiting for a GPU, or breaking a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _read_at_any_rate(offsets: Tensor) -> bool:
    """Whether they are looked at though a GPU be waited for.

    The mask in their place would be of all positions of all rows, squared.
    """
    if offsets.device.type == "meta" or torch.compiler.is_compiling():
        return False
    return offsets.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def _check_sight(
    query: Tensor, key: Tensor, lengths: Tensor | None, offsets: Tensor | None, mask: Tensor | None
) -> None:
    rows, heads, queries, _ = query.shape
    keys = key.shape[2]
    if sum(given is not None for given in (lengths, offsets, mask)) > 1:
        raise ValueError("at most one of lengths, offsets and mask can be given")
    if lengths is not None:
        _check_integers("lengths", lengths, f"({rows},)")
        if len(lengths) != rows:
            raise ValueError(f"lengths must be ({rows},) for as many rows, not {tuple(lengths.shape)}")
        if queries > keys:
            raise ValueError(f"with lengths, {queries} queries cannot be the last of {keys} keys")
        if _readable(lengths) and not ((lengths >= 0) & (lengths <= keys)).all():
            raise ValueError(f"lengths must lie in [0, {keys}], not {lengths.tolist()}")
    if offsets is not None:
        _check_integers("offsets", offsets, "(documents + 1,)")
        if len(offsets) == 0:
            raise ValueError("offsets must hold at least the beginning of the first document, not nothing")
        if queries != keys:
            raise ValueError(f"with offsets there must be as many queries as keys, not {queries} and {keys}")
        if _readable(offsets):
            edges = [0, *offsets.tolist(), keys]
            if edges != sorted(edges):
                raise ValueError(f"offsets must not decrease and lie in [0, {keys}], not {edges[1:-1]}")
    if mask is not None:
        wanted = ((1, rows), (1, heads), (1, queries), (1, keys))
        if mask.dtype != torch.bool or mask.ndim != 4:
            raise ValueError(f"mask must be (B, 1 or H, S, K) bool, not {tuple(mask.shape)} {mask.dtype}")
        if any(size not in sizes for size, sizes in zip(mask.shape, wanted, strict=True)):
            raise ValueError(
                f"mask must broadcast to {(rows, heads, queries, keys)}, not {tuple(mask.shape)}"
            )
        if mask.device != query.device:
            raise ValueError(f"mask is on {mask.device}, and query on {query.device}")


def _spans(key: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> Tensor | None:
    """Where each position's own keys begin and end, (B or 1, 2, K) int32; None where all keys are."""
    keys = key.shape[2]
    position = torch.arange(keys, device=key.device)
    if lengths is not None:
        begin = (keys - lengths.to(key.device, torch.long)).clamp(0, keys)[:, None]
        end = torch.where(position >= begin, keys, begin)
        return torch.stack((begin.expand_as(end), end), dim=1).to(torch.int32)
    if offsets is not None:
        edges = offsets.to(key.device, torch.long).clamp(0, keys)
        following = torch.searchsorted(edges, position, right=True)
        # What stands before the first document or behind the last is padding.
        begin, end = edges[(following - 1).clamp_min(0)], edges[following.clamp_max(len(edges) - 1)]
        return torch.stack((begin, end))[None].to(torch.int32)
    return None


def _visible(query: Tensor, key: Tensor, spans: Tensor | None, causal: bool) -> Tensor:
    """Which keys each query sees: (B or 1, 1, S, K) bool."""
    queries, keys = query.shape[2], key.shape[2]
    place = torch.arange(keys, device=query.device)
    position = torch.arange(keys - queries, keys, device=query.device)[:, None]
    seen = (place <= position) if causal else torch.ones_like(place <= position)
    if spans is None:
        return seen[None, None]
    begin, end = spans[:, :, keys - queries :, None].unbind(1)
    return (seen & (begin <= place) & (place < end))[:, None]


def _padding_zeroed(tensor: Tensor, spans: Tensor | None) -> Tensor:
    """(B, G, K, d) with zeros at padding: a weight of 0 would not keep out the infinite."""
    if spans is None:
        return tensor
    return tensor.masked_fill((spans[:, 0] >= spans[:, 1])[:, None, :, None], 0)


def _document_by_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: list[list[list[int]]],
    causal: bool,
    scale: float | None,
) -> Tensor:
    """Each document by itself, where to look at where they are costs nothing: no dense mask, no padding.

    `documents`: of each row, or of all alike, where they begin and end; some may have no length. The pieces
    are split off and joined once: slices written in place would each cost their backward pass a tensor of the
    whole row's size.
    """
    queries, keys = query.shape[2], key.shape[2]
    if len(documents) == 1:
        documents = documents * query.shape[0]
    groups = []
    for own, alike in itertools.groupby(range(query.shape[0]), documents.__getitem__):
        first, *others = alike
        rows = slice(first, first + 1 + len(others))
        real = {(begin, end) for begin, end in own if begin < end and end > keys - queries}
        edges = sorted({0, keys, *itertools.chain(*real)})
        sizes = [after - before for before, after in itertools.pairwise(edges)]
        # How many queries stand at the keys of each piece: of keys ahead of the first query, none.
        asking = [max(0, after - max(before, keys - queries)) for before, after in itertools.pairwise(edges)]
        pieces = [
            attention_reference(q, k, v, causal=causal, scale=scale)
            if (begin, begin + k.shape[2]) in real
            else torch.zeros_like(q)
            for begin, q, k, v in zip(
                edges,
                query[rows].split(asking, dim=2),
                key[rows].split(sizes, dim=2),
                value[rows].split(sizes, dim=2),
                strict=False,
            )
        ]
        groups.append(torch.cat(pieces, dim=2))
    return torch.cat(groups)


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """As `attention`: PyTorch's own, with a dense mask where anything else than the triangle is masked."""
    queries, keys = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if offsets is not None and _read_at_any_rate(offsets):
        edges = itertools.pairwise(offsets.unique_consecutive().tolist())
        documents = [[list(each) for each in edges]]
        if documents[0]:
            return _document_by_document(query, key, value, documents, causal, scale)
    spans = _spans(key, lengths, offsets)
    if spans is None and mask is None and (not causal or queries in (1, keys)):
        causal = causal and queries > 1  # PyTorch's triangle begins at key 0; the last query sees all
        return _of_pytorch(query, key, value, is_causal=causal, scale=scale, enable_gqa=grouped)
    if spans is None and mask is None and 0 < queries <= FEW and query.device.type == "cpu":
        # As a step does: rounding is the same then, in 16 bits too, whether positions are read one by one or
        # a few at once, and what is drawn by guessing is what is drawn code after code.
        nothing = (None,) * 6
        ends = range(keys - queries + 1, keys + 1)
        each = [
            decode_attention_reference(query[:, :, at], key[:, :, :end], value[:, :, :end], *nothing, scale)
            for at, end in enumerate(ends)
        ]
        return torch.stack(each, dim=2)
    # (Where there is no document at all, what follows keeps the zeros differentiable.)
    if queries and spans is not None and _readable(spans) and bool((spans[:, 0] < spans[:, 1]).any()):
        documents = [row.t().unique_consecutive(dim=0).tolist() for row in spans]
        return _document_by_document(query, key, value, documents, causal, scale)
    visible = _visible(query, key, spans, causal)
    visible = visible if mask is None else visible & mask
    # PyTorch's fused kernels give NaN to a query without a key, so it sees all, and its output is erased.
    blind = ~visible.any(-1, keepdim=True)
    output = _of_pytorch(
        query.masked_fill(blind, 0),
        _padding_zeroed(key, spans),
        _padding_zeroed(value, spans),
        attn_mask=visible | blind,
        scale=scale,
        enable_gqa=grouped,
    )
    return output.masked_fill(blind, 0)


def _of_pytorch(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Its fused attention; where a backward pass is to come on a CPU, in float32, in which that is faster."""
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if query.device.type != "cpu" or query.dtype == torch.float64 or not learns:
        return F.scaled_dot_product_attention(query, key, value, **options)
    with torch.autocast("cpu", enabled=False):
        wide = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)
    return wide.to(query.dtype)


# --- the ops' reference: as above, but with what the backward pass needs ---


def _empty_like(tensor: Tensor) -> Tensor:
    """(B, H, S, d), in memory (B, S, H, d): then heads are joined without a copy."""
    return torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _scores(query: Tensor, key: Tensor, spans: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Logarithms of the weights, but for a constant of each query: (B, H, S, K) float32."""
    members = query.shape[1] // key.shape[1]
    wide = _padding_zeroed(key, spans).float().repeat_interleave(members, 1)
    scores = query.float() @ wide.mT * scale
    return scores.masked_fill(~_visible(query, key, spans, causal), -torch.inf)


def _forward_reference(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    scores = _scores(query, key, spans, causal, scale)
    logsumexp = scores.logsumexp(-1)
    logsumexp = logsumexp.masked_fill(logsumexp == -torch.inf, torch.inf)
    wide = _padding_zeroed(value, spans).float().repeat_interleave(query.shape[1] // value.shape[1], 1)
    return _empty_like(query).copy_((scores - logsumexp[..., None]).exp() @ wide), logsumexp


def _backward_reference(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = key.shape[1]
    members = query.shape[1] // groups
    weights = (_scores(query, key, spans, causal, scale) - logsumexp[..., None]).exp()
    blind = logsumexp[..., None] == torch.inf
    wide = gradient.float().masked_fill(blind, 0)
    change = wide @ _padding_zeroed(value, spans).float().repeat_interleave(members, 1).mT
    change = weights * (change - (wide * output.float()).sum(-1, keepdim=True)) * scale
    of_query = change @ _padding_zeroed(key, spans).float().repeat_interleave(members, 1)
    of_key = (change.mT @ query.float().masked_fill(blind, 0)).unflatten(1, (groups, members)).sum(2)
    of_value = (weights.mT @ wide).unflatten(1, (groups, members)).sum(2)
    return (
        _empty_like(query).copy_(of_query),
        _empty_like(key).copy_(of_key),
        _empty_like(value).copy_(of_value),
    )


# --- the kernels ---


_kernel = partial(kernel, sizes=("heads", "groups", "queries", "keys", "ahead", "covered", "stride_spans"))


@_kernel
def _load(
    start_ptr, first, last, stride, width, PADDED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Rows from `first` on, (ROWS, WIDTH), with zeros from row `last` and from column `width` on."""
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row < last)[:, None]
    if PADDED:
        mask = mask & (column < width)[None, :]
    return tl.load(start_ptr + row.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0.0)


@_kernel
def _store(
    start_ptr, tile, first, last, stride, width, PADDED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row < last)[:, None]
    if PADDED:
        mask = mask & (column < width)[None, :]
    place = start_ptr + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(place, tile.to(start_ptr.dtype.element_ty), mask=mask)


@_kernel
def _seen_by_queries(spans_ptr, row, queries, keys, covered, ahead):
    """The keys [lower, upper) that query rows see. Rows beyond the last repeat it, so they move no bound."""
    position = tl.minimum(row, queries - 1) + keys - queries
    lower = tl.load(spans_ptr + position, mask=covered > 0, other=0)
    upper = tl.load(spans_ptr + covered + position, mask=covered > 0, other=keys)
    return lower, tl.minimum(upper, position + ahead + 1)


@_kernel
def _seen_by_keys(spans_ptr, key, queries, keys, covered, ahead):
    """The query rows [lower, upper) that see keys. Keys beyond the last repeat it, so they move no bound."""
    position = tl.minimum(key, keys - 1)
    absent = keys - queries  # positions before the first query
    lower = tl.load(spans_ptr + position, mask=covered > 0, other=tl.minimum(absent, 0))
    upper = tl.load(spans_ptr + covered + position, mask=covered > 0, other=keys)
    return tl.maximum(tl.maximum(lower, position - ahead) - absent, 0), upper - absent


@_kernel
def _visible_places(lower, upper, first, BLOCK: tl.constexpr):
    """Which of the places from `first` on lie in [lower[r], upper[r]): (rows, BLOCK)."""
    place = first + tl.arange(0, BLOCK)
    return (place[None, :] >= lower[:, None]) & (place[None, :] < upper[:, None])


@_kernel
def _forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    spans_ptr,
    output_ptr,
    logsumexp_ptr,
    heads,
    groups,
    queries,
    keys,
    width,
    ahead,
    covered,
    scale,
    stride_spans,
    stride_query_batch,
    stride_query_head,
    stride_query,
    stride_key_batch,
    stride_key_head,
    stride_key,
    stride_value_batch,
    stride_value_head,
    stride_value,
    LOG2_E: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """A tile of queries goes through its keys, correcting its sums whenever a larger score turns up."""
    tiles = (queries + BLOCK_QUERIES - 1) // BLOCK_QUERIES
    # The last tiles first: if causal, they take longest.
    start = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_QUERIES
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    group = head // (heads // groups)
    query_ptr += batch * stride_query_batch + head * stride_query_head
    key_ptr += batch * stride_key_batch + group * stride_key_head
    value_ptr += batch * stride_value_batch + group * stride_value_head
    row = start + tl.arange(0, BLOCK_QUERIES)
    lower, upper = _seen_by_queries(spans_ptr + batch * stride_spans, row, queries, keys, covered, ahead)
    # Blocks of keys begin where the first query's do. Queries of one document see the whole of the first of
    # them, which need no mask; queries of two documents have no block in common.
    first = tl.min(lower, axis=0)
    last = tl.max(upper, axis=0)
    whole = tl.maximum(tl.min(upper, axis=0) - tl.max(lower, axis=0), 0) // BLOCK_KEYS
    count = (tl.maximum(last - first, 0) + BLOCK_KEYS - 1) // BLOCK_KEYS

    slope = tl.cast(scale, tl.float32) * LOG2_E
    query = _load(query_ptr, start, queries, stride_query, width, PADDED, BLOCK_QUERIES, WIDTH)
    output = tl.zeros((BLOCK_QUERIES, WIDTH), tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), tl.float32)
    most = tl.full((BLOCK_QUERIES,), float("-inf"), tl.float32)
    for masked in tl.static_range(2):
        for number in range(whole if masked else 0, count if masked else whole):
            place = first + number * BLOCK_KEYS
            key = _load(key_ptr, place, last, stride_key, width, PADDED, BLOCK_KEYS, WIDTH)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee")
            if masked:
                scores = tl.where(_visible_places(lower, upper, place, BLOCK_KEYS), scores, float("-inf"))
            larger = tl.maximum(most, tl.max(scores, axis=1) * slope)
            # A query that has seen nothing yet has no largest score.
            base = tl.where(larger == float("-inf"), 0.0, larger) if masked else larger
            weights = tl.exp2(scores * slope - base[:, None])
            kept = tl.exp2(most - base)
            total = total * kept + tl.sum(weights, axis=1)
            value = _load(value_ptr, place, last, stride_value, width, PADDED, BLOCK_KEYS, WIDTH)
            output = tl.dot(weights.to(value.dtype), value, output * kept[:, None], input_precision="ieee")
            most = larger

    # Infinite for a query that sees no key: the backward pass then finds all its weights to be zero.
    divisor = tl.where(total > 0, total, 1.0)
    logsumexp = tl.where(total > 0, (most + tl.log2(divisor)) / LOG2_E, float("inf"))
    output = output / divisor[:, None]
    tl.store(logsumexp_ptr + (batch * heads + head) * queries + row, logsumexp, mask=row < queries)
    output_ptr += (batch * queries * heads + head) * width
    _store(output_ptr, output, start, queries, heads * width, width, PADDED, BLOCK_QUERIES, WIDTH)


@_kernel
def _query_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    spans_ptr,
    output_ptr,
    gradient_ptr,
    logsumexp_ptr,
    delta_ptr,
    query_gradient_ptr,
    heads,
    groups,
    queries,
    keys,
    width,
    ahead,
    covered,
    scale,
    stride_spans,
    stride_query_batch,
    stride_query_head,
    stride_query,
    stride_key_batch,
    stride_key_head,
    stride_key,
    stride_value_batch,
    stride_value_head,
    stride_value,
    stride_output_batch,
    stride_output_head,
    stride_output,
    stride_gradient_batch,
    stride_gradient_head,
    stride_gradient,
    LOG2_E: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """The gradient of a tile of queries; and their deltas, which the keys' kernel needs after this one: what
    a softmax's gradient falls short of, the product of an output and its gradient."""
    tiles = (queries + BLOCK_QUERIES - 1) // BLOCK_QUERIES
    start = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_QUERIES
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    group = head // (heads // groups)
    query_ptr += batch * stride_query_batch + head * stride_query_head
    key_ptr += batch * stride_key_batch + group * stride_key_head
    value_ptr += batch * stride_value_batch + group * stride_value_head
    output_ptr += batch * stride_output_batch + head * stride_output_head
    gradient_ptr += batch * stride_gradient_batch + head * stride_gradient_head
    row = start + tl.arange(0, BLOCK_QUERIES)
    lower, upper = _seen_by_queries(spans_ptr + batch * stride_spans, row, queries, keys, covered, ahead)
    first = tl.min(lower, axis=0)
    last = tl.max(upper, axis=0)

    gradient = _load(gradient_ptr, start, queries, stride_gradient, width, PADDED, BLOCK_QUERIES, WIDTH)
    output = _load(output_ptr, start, queries, stride_output, width, PADDED, BLOCK_QUERIES, WIDTH)
    delta = tl.sum(output.to(tl.float32) * gradient.to(tl.float32), axis=1)
    kept = (batch * heads + head) * queries + row
    tl.store(delta_ptr + kept, delta, mask=row < queries)
    logsumexp = tl.load(logsumexp_ptr + kept, mask=row < queries, other=float("inf")) * LOG2_E
    scale = tl.cast(scale, tl.float32)
    slope = scale * LOG2_E
    query = _load(query_ptr, start, queries, stride_query, width, PADDED, BLOCK_QUERIES, WIDTH)
    query_gradient = tl.zeros((BLOCK_QUERIES, WIDTH), tl.float32)
    # Masks are free beside three products, and a second loop without them would cost registers.
    for place in range(first, last, BLOCK_KEYS):
        key = _load(key_ptr, place, last, stride_key, width, PADDED, BLOCK_KEYS, WIDTH)
        value = _load(value_ptr, place, last, stride_value, width, PADDED, BLOCK_KEYS, WIDTH)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        weights = tl.exp2(scores * slope - logsumexp[:, None])
        change = tl.dot(gradient, tl.trans(value), input_precision="ieee")
        visible = _visible_places(lower, upper, place, BLOCK_KEYS)
        change = tl.where(visible, weights * (change - delta[:, None]), 0.0)
        query_gradient = tl.dot(change.to(key.dtype), key, query_gradient, input_precision="ieee")
    query_gradient_ptr += (batch * queries * heads + head) * width
    query_gradient *= scale
    _store(
        query_gradient_ptr,
        query_gradient,
        start,
        queries,
        heads * width,
        width,
        PADDED,
        BLOCK_QUERIES,
        WIDTH,
    )


@_kernel
def _key_gradients_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    spans_ptr,
    gradient_ptr,
    logsumexp_ptr,
    delta_ptr,
    key_gradient_ptr,
    value_gradient_ptr,
    heads,
    groups,
    queries,
    keys,
    width,
    ahead,
    covered,
    scale,
    stride_spans,
    stride_query_batch,
    stride_query_head,
    stride_query,
    stride_key_batch,
    stride_key_head,
    stride_key,
    stride_value_batch,
    stride_value_head,
    stride_value,
    stride_gradient_batch,
    stride_gradient_head,
    stride_gradient,
    LOG2_E: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """The gradients of a tile of keys and their values, from the queries of all heads that share them, one
    after the other: nothing is added up in memory. Weights stand transposed here, (keys, queries)."""
    tiles = (keys + BLOCK_KEYS - 1) // BLOCK_KEYS
    start = tl.program_id(0) % tiles * BLOCK_KEYS
    group = (tl.program_id(0) // tiles % groups).to(tl.int64)
    batch = (tl.program_id(0) // tiles // groups).to(tl.int64)
    members = heads // groups
    query_ptr += batch * stride_query_batch + group * members * stride_query_head
    gradient_ptr += batch * stride_gradient_batch + group * members * stride_gradient_head
    logsumexp_ptr += (batch * heads + group * members) * queries
    delta_ptr += (batch * heads + group * members) * queries
    key_ptr += batch * stride_key_batch + group * stride_key_head
    value_ptr += batch * stride_value_batch + group * stride_value_head
    lower, upper = _seen_by_keys(
        spans_ptr + batch * stride_spans, start + tl.arange(0, BLOCK_KEYS), queries, keys, covered, ahead
    )
    first = tl.min(lower, axis=0)
    last = tl.max(upper, axis=0)
    count = (tl.maximum(last - first, 0) + BLOCK_QUERIES - 1) // BLOCK_QUERIES

    scale = tl.cast(scale, tl.float32)
    slope = scale * LOG2_E
    key = _load(key_ptr, start, keys, stride_key, width, PADDED, BLOCK_KEYS, WIDTH)
    value = _load(value_ptr, start, keys, stride_value, width, PADDED, BLOCK_KEYS, WIDTH)
    value = tl.where((lower < upper)[:, None], value, 0.0)  # padding may hold what 0 x does not erase
    key_gradient = tl.zeros((BLOCK_KEYS, WIDTH), tl.float32)
    value_gradient = tl.zeros((BLOCK_KEYS, WIDTH), tl.float32)
    for step in range(members * count):
        member = (step // count).to(tl.int64)
        place = first + step % count * BLOCK_QUERIES
        row = place + tl.arange(0, BLOCK_QUERIES)
        query = _load(
            query_ptr + member * stride_query_head,
            place,
            last,
            stride_query,
            width,
            PADDED,
            BLOCK_QUERIES,
            WIDTH,
        )
        scores = tl.dot(key, tl.trans(query), input_precision="ieee")
        kept = member * queries + row
        logsumexp = tl.load(logsumexp_ptr + kept, mask=row < last, other=float("inf")) * LOG2_E
        visible = _visible_places(lower, upper, place, BLOCK_QUERIES)
        weights = tl.where(visible, tl.exp2(scores * slope - logsumexp[None, :]), 0.0)
        gradient = _load(
            gradient_ptr + member * stride_gradient_head,
            place,
            last,
            stride_gradient,
            width,
            PADDED,
            BLOCK_QUERIES,
            WIDTH,
        )
        value_gradient = tl.dot(weights.to(value.dtype), gradient, value_gradient, input_precision="ieee")
        delta = tl.load(delta_ptr + kept, mask=row < last, other=0.0)
        change = tl.dot(value, tl.trans(gradient), input_precision="ieee")
        change = weights * (change - delta[None, :])
        key_gradient = tl.dot(change.to(key.dtype), query, key_gradient, input_precision="ieee")
    key_gradient *= scale
    key_gradient_ptr += (batch * keys * groups + group) * width
    value_gradient_ptr += (batch * keys * groups + group) * width
    stride = groups * width
    _store(key_gradient_ptr, key_gradient, start, keys, stride, width, PADDED, BLOCK_KEYS, WIDTH)
    _store(value_gradient_ptr, value_gradient, start, keys, stride, width, PADDED, BLOCK_KEYS, WIDTH)


# --- how they are launched ---


class Tile(NamedTuple):
    """How many queries and keys one program takes at a time, and Triton's num_warps and num_stages for it."""

    queries: int
    keys: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}

    def amd_options(self) -> dict[str, int]:
        """AMD's warps are twice as wide, and hold one stage of the pipeline in registers."""
        return {"num_warps": 4, "num_stages": max(1, self.stages - 1)}


# By the widest head that they are for (rounded up to a power of two): the largest that spill no registers and
# need no more than 100 KB of shared memory on sm_80. float32 has no matrix units to keep busy.
FORWARD_TILES = {
    32: Tile(64, 64, 4, 3),
    64: Tile(128, 64, 8, 3),
    128: Tile(128, 64, 8, 3),
    256: Tile(64, 32, 8, 2),
}
QUERY_TILES = {64: Tile(128, 64, 8, 2), 128: Tile(128, 64, 8, 2), 256: Tile(64, 32, 8, 1)}
KEY_TILES = {64: Tile(64, 128, 8, 2), 128: Tile(32, 128, 8, 2), 256: Tile(32, 32, 8, 2)}
FORWARD_TILES_FLOAT32 = {64: Tile(32, 32, 8, 1), 128: Tile(32, 16, 8, 1)}
QUERY_TILES_FLOAT32 = {64: Tile(32, 32, 8, 1), 128: Tile(16, 16, 8, 1)}
KEY_TILES_FLOAT32 = {64: Tile(32, 32, 8, 1), 128: Tile(16, 32, 8, 1)}
# Few queries leave multiprocessors idle unless their tiles are small. One picture's ViT makes 80 large ones.
FEW_PROGRAMS, SMALL_TILE = 256, Tile(64, 64, 4, 3)


def _tile(tiles: dict[int, Tile], tiles_float32: dict[int, Tile], query: Tensor) -> Tile:
    ours = tiles_float32 if query.dtype == torch.float32 else tiles
    needed = power_of_two(query.shape[3])
    if needed != query.shape[3]:  # the columns beyond it are masked, which takes registers
        needed *= 2
    return next((tile for widest, tile in ours.items() if needed <= widest), ours[max(ours)])


def _forward_tile(query: Tensor) -> Tile:
    rows, heads, queries, _ = query.shape
    tile = _tile(FORWARD_TILES, FORWARD_TILES_FLOAT32, query)
    large = tile.queries > SMALL_TILE.queries
    return SMALL_TILE if large and rows * heads * blocks(queries, tile.queries) < FEW_PROGRAMS else tile


def _strides(name: str, tensor: Tensor) -> dict[str, int]:
    """Of rows, heads and positions, by the kernels' names. Along a side of length 1 nothing moves."""
    parts = (f"stride_{name}_batch", f"stride_{name}_head", f"stride_{name}")
    sizes = zip(tensor.shape[:3], tensor.stride()[:3], strict=True)
    return dict(zip(parts, (stride if size > 1 else 0 for size, stride in sizes), strict=True))


def _readied(tensor: Tensor) -> Tensor:
    """Itself where a kernel can read it 16 bytes at a time, else a copy: one compilation serves all."""
    aligned = tensor.data_ptr() % 16 == 0 and all(
        stride % STEP == 0 for stride in _strides("", tensor).values()
    )
    return (
        tensor if aligned and tensor.stride(3) == 1 else tensor.clone(memory_format=torch.contiguous_format)
    )


def _arguments(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, causal: bool, scale: float
) -> dict[str, Any]:
    """What all kernels take."""
    heads, queries, width = query.shape[1:]
    groups, keys = key.shape[1:3]
    if spans is None:
        spans = torch.empty(1, 2, 0, dtype=torch.int32, device=query.device)
    padded = power_of_two(width)
    return {
        "query_ptr": query,
        "key_ptr": key,
        "value_ptr": value,
        "spans_ptr": spans,
        "heads": heads,
        "groups": groups,
        "queries": queries,
        "keys": keys,
        "width": width,
        "ahead": 0 if causal else queries + keys,
        "covered": spans.shape[2],
        "scale": scale,
        "stride_spans": spans.stride(0) if spans.shape[0] > 1 else 0,
        **_strides("query", query),
        **_strides("key", key),
        **_strides("value", value),
        "LOG2_E": LOG2_E,
        "PADDED": padded != width,
        "WIDTH": padded,
    }


def _launch_forward(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    rows, heads, queries, _ = query.shape
    query, key, value = _readied(query), _readied(key), _readied(value)
    output = _empty_like(query)
    logsumexp = torch.empty(rows, heads, queries, dtype=torch.float32, device=query.device)
    tile = _forward_tile(query)
    launch(
        _forward_kernel,
        (blocks(queries, tile.queries) * heads * rows,),
        **_arguments(query, key, value, spans, causal, scale),
        output_ptr=output,
        logsumexp_ptr=logsumexp,
        BLOCK_QUERIES=tile.queries,
        BLOCK_KEYS=tile.keys,
        options=tile.options(),
        amd_options=tile.amd_options(),
    )
    return output, logsumexp


def _launch_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, queries, _ = query.shape
    groups, keys = key.shape[1:3]
    query, key, value = _readied(query), _readied(key), _readied(value)
    gradient, output = _readied(gradient), _readied(output)
    gradients = _empty_like(query), _empty_like(key), _empty_like(value)
    arguments = {
        **_arguments(query, key, value, spans, causal, scale),
        **_strides("gradient", gradient),
        "gradient_ptr": gradient,
        "logsumexp_ptr": logsumexp.contiguous(),
        "delta_ptr": torch.empty(rows, heads, queries, dtype=torch.float32, device=query.device),
    }
    tile = _tile(QUERY_TILES, QUERY_TILES_FLOAT32, query)
    launch(
        _query_gradient_kernel,
        (blocks(queries, tile.queries) * heads * rows,),
        **arguments,
        **_strides("output", output),
        output_ptr=output,
        query_gradient_ptr=gradients[0],
        BLOCK_QUERIES=tile.queries,
        BLOCK_KEYS=tile.keys,
        options=tile.options(),
        amd_options=tile.amd_options(),
    )
    tile = _tile(KEY_TILES, KEY_TILES_FLOAT32, query)
    launch(
        _key_gradients_kernel,
        (blocks(keys, tile.keys) * groups * rows,),
        **arguments,
        key_gradient_ptr=gradients[1],
        value_gradient_ptr=gradients[2],
        BLOCK_QUERIES=tile.queries,
        BLOCK_KEYS=tile.keys,
        options=tile.options(),
        amd_options=tile.amd_options(),
    )
    return gradients


# --- the ops ---


def _chosen(query: Tensor, key: Tensor, *, causal: bool, ragged: bool, dense_mask: bool = False) -> str:
    """The implementation for such a call."""
    past = causal and 1 < query.shape[2] != key.shape[2]
    width = query.shape[3]
    widest = WIDEST_FLOAT32 if query.dtype == torch.float32 else WIDEST
    unable = None
    if dense_mask:
        unable = "it takes lengths and offsets, but no dense mask"
    elif width % STEP or width > widest:
        unable = f"in {query.dtype} it takes head sizes in steps of {STEP} up to {widest}, not {width}"
    return choice.implementation(
        "attention",
        query,
        unable=unable,
        head_width=width,
        dense_mask=dense_mask,
        ragged=ragged,
        past=past,
    )


@torch.library.custom_op("janus::attention", mutates_args=())
def attention_op(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    _check(query, key, value, causal, scale)
    chosen = _chosen(query, key, causal=causal, ragged=spans is not None)
    runs = _launch_forward if chosen == "triton" else _forward_reference
    return runs(query, key, value, spans, causal, scale)


@attention_op.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    _check(query, key, value, causal, scale)
    return _empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("janus::attention_backward", mutates_args=())
def attention_backward_op(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(query, key, value, causal, scale)
    chosen = _chosen(query, key, causal=causal, ragged=spans is not None)
    runs = _launch_backward if chosen == "triton" else _backward_reference
    return runs(gradient, query, key, value, spans, output, logsumexp, causal, scale)


@attention_backward_op.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(query), _empty_like(key), _empty_like(value)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, spans, ctx.causal, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, spans, *output)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    found = attention_backward_op(gradient, *ctx.saved_tensors, ctx.causal, ctx.scale)
    return *found, None, None, None


attention_op.register_autograd(_backward, setup_context=_setup)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of queries (B, H, S, d) over keys and values (B, G, K, d) -> (B, H, S, d), differentiable.

    H is a multiple of G. The queries are the last S of the K positions; if `causal`, each sees the keys up to
    its own. `scale` multiplies the scores, d ** -0.5 unless given. At most one of these may be given:

    - `lengths`, (B,) integers: only the last lengths[b] keys of row b are real, what stands left of them is
      padding.
    - `offsets`, (documents + 1,) integers: in every row, document i is the positions [offsets[i],
      offsets[i + 1]), and sees only itself. S = K.
    - `mask`, bool, that broadcasts to (B, H, S, K): which keys a query sees. Only in plain PyTorch.

    A query that sees no key, as padding, gives zeros and has gradients of zero. What padding holds is never
    read. Floats of one dtype; the kernel takes bfloat16 and float16 with d up to 256, and float32 with d up
    to 128, in steps of 16. Raises ValueError for shapes, dtypes or devices that do not fit each other, and
    for `lengths` or `offsets` on the CPU which are out of range; on a GPU they are cut to it, unseen.
    """
    _check(query, key, value, causal, scale)
    _check_sight(query, key, lengths, offsets, mask)
    ragged = lengths is not None or offsets is not None
    if _chosen(query, key, causal=causal, ragged=ragged, dense_mask=mask is not None) == "torch":
        return attention_reference(
            query, key, value, causal=causal, lengths=lengths, offsets=offsets, mask=mask, scale=scale
        )
    scale = query.shape[3] ** -0.5 if scale is None else scale
    return attention_op(query, key, value, _spans(key, lengths, offsets), causal, scale)[0]


def every_launch() -> Iterator[Callable[[], object]]:
    """Calls on "meta" tensors that together launch every configuration of these kernels, but for some that a
    heavier one stands for.

    Heads of 64 and 128 in every dtype. The other powers of two, and one head padded to each of the three
    widest, in bfloat16 (float16 takes the same registers); the widest padded one in float32 (narrower ones
    have its tiles, or 64's). What is masked, and how many there are of anything, is no matter of compilation.
    Two numbers of rows: for small tiles and for large.
    """
    wanted = [(width, dtype) for width in (64, 128) for dtype in DTYPES]
    wanted += [(width, torch.bfloat16) for width in (16, 32, 48, 80, 144, 256)] + [(80, torch.float32)]
    for width, dtype in wanted:
        for rows in (1, 9):
            query = torch.empty(rows, 16, 576, width, dtype=dtype, device="meta")
            logsumexp = torch.empty(rows, 16, 576, device="meta")
            yield partial(_launch_forward, query, query, query, None, False, 1.0)
        yield partial(_launch_backward, query, query, query, query, None, query, logsumexp, False, 1.0)
