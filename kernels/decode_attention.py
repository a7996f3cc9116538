"""Attention of one query per row over a static key-value cache, with many programs to each row.

B rows, H heads, G key-value heads, C positions of the cache, d head width; P shared prefixes of L positions.

The keys that a row sees are split into pieces of `SPLIT`, counted from the first that it sees, whether that
lies in a shared prefix or in its own cache; each program attends to one piece, and a second kernel puts the
pieces together (Dao et al., "Flash-Decoding for long-context inference", 2023). What a row computes, and in
which order, is thus decided by its own keys alone: neither the rows beside it, nor its padding, nor the
cache's capacity changes a bit of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from janus.checks import require_number
from janus.kernels import choice
from janus.kernels.launch import DTYPES, blocks, kernel, launch, tl

SPLIT = 64  # keys of a program; enough programs for a whole chip even where one picture is drawn
CHUNK = 16  # pieces that are put together at once
HEADS = 16  # queries of a group that a program serves: the least that tensor cores take
WIDEST = 256  # the kernel keeps SPLIT keys in registers


@dataclass(frozen=True)
class SharedPrefix:
    """Keys that rows see before their own: row b sees the first lengths[rows[b]] of prefix rows[b].

    `keys` and `values` (P, G, L, d); `lengths` (P,) and `rows` (B,) are integers, where -1 means none.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    rows: Tensor


Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
OfPrefix = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
NO_PREFIX: OfPrefix = (None, None, None, None)


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
    """Rows (B, H, d) that see all of the keys and values, (B, G, K, d)."""
    grouped = query.shape[1] != keys.shape[1]
    query = query[:, :, None]
    if query.device.type == "cpu" and query.dtype != torch.float32:
        query = query.expand(-1, -1, 2, -1)  # torch has no fast product of one row in 16 bits, and has of two
    mixed = F.scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=grouped)
    return mixed[:, :, 0]


def _attend_plainly(query: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
    """The same in operations that a compiler makes two loops of, over the keys and over the values."""
    group = query.unflatten(1, (keys.shape[1], -1))[:, :, :, None].float()
    scores = (group * keys[:, :, None].float()).sum(dim=-1) * (
        keys.shape[3] ** -0.5 if scale is None else scale
    )
    weights = scores.softmax(dim=-1)
    mixed = (weights[..., None] * values[:, :, None].float()).sum(dim=-2)
    return mixed.flatten(1, 2).to(query.dtype)


def _attend_masked(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    prefix_keys: Tensor | None,
    prefix_values: Tensor | None,
    prefix_lengths: Tensor | None,
    prefix_rows: Tensor | None,
    scale: float | None,
) -> Tensor:
    """All rows at once over all that there is, without a look at any number."""

    def column(numbers: Tensor) -> Tensor:
        return numbers[:, None]

    place = torch.arange(keys.shape[2], device=keys.device)
    visible = torch.ones(len(query), len(place), dtype=torch.bool, device=keys.device)
    if starts is not None:
        visible = visible & (place >= column(starts))
    if ends is not None:
        visible = visible & (place < column(ends))
    if prefix_keys is not None and prefix_values is not None and len(prefix_keys):
        assert prefix_lengths is not None
        assert prefix_rows is not None
        shares = (prefix_rows >= 0) & (prefix_rows < len(prefix_keys))
        chosen = torch.where(shares, prefix_rows, 0)
        lengths = torch.where(shares, prefix_lengths[chosen], 0)
        before = torch.arange(prefix_keys.shape[2], device=keys.device) < column(lengths)
        visible = torch.cat((before, visible), dim=1)
        keys = torch.cat((prefix_keys[chosen], keys), dim=2)
        values = torch.cat((prefix_values[chosen], values), dim=2)
    if not visible.shape[1]:
        return torch.zeros_like(query)
    # What nobody may see can be anything, and a product with NaN is NaN whatever its weight.
    unseen = ~visible[:, None, :, None]
    keys, values = keys.masked_fill(unseen, 0), values.masked_fill(unseen, 0)
    blind = ~visible.any(dim=1)[:, None, None, None]  # it attends to zeros
    mixed = F.scaled_dot_product_attention(
        query[:, :, None],
        keys,
        values,
        attn_mask=visible[:, None, None] | blind,
        scale=scale,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
    return mixed[:, :, 0]


def decode_attention_reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    prefix_keys: Tensor | None,
    prefix_values: Tensor | None,
    prefix_lengths: Tensor | None,
    prefix_rows: Tensor | None,
    scale: float | None,
    attend: Attend = _attend,
) -> Tensor:
    """As `decode_attention`, with the prefix's four tensors, or none of them.

    On a CPU neighbors that see alike are attended to together, without their padding: it would shift the
    order of summation, and a row in bfloat16 would depend on the length of those beside it. Elsewhere it is
    masked: the host would wait for the device to know who sees what, and a recording of CUDA may not.
    """
    if starts is None and ends is None and prefix_rows is None and keys.shape[2]:
        return attend(query, keys, values, scale)
    if query.device.type != "cpu":
        of_prefix = prefix_keys, prefix_values, prefix_lengths, prefix_rows
        return _attend_masked(query, keys, values, starts, ends, *of_prefix, scale)

    def listed(numbers: Tensor | None, otherwise: int) -> list[int]:
        return [otherwise] * len(query) if numbers is None else numbers.tolist()

    lengths = [] if prefix_lengths is None else prefix_lengths.tolist()
    sights = list(zip(listed(starts, 0), listed(ends, keys.shape[2]), listed(prefix_rows, -1), strict=True))
    mixed = torch.zeros_like(query)
    for (start, end, prefix), alike in itertools.groupby(range(len(query)), sights.__getitem__):
        first, *others = alike
        rows = slice(first, first + 1 + len(others))
        own = slice(max(start, 0), max(end, 0))
        k, v = keys[rows, :, own], values[rows, :, own]
        if prefix_keys is not None and prefix_values is not None and 0 <= prefix < len(lengths):
            shared = slice(prefix, prefix + 1), slice(None), slice(max(lengths[prefix], 0))
            k, v = (
                torch.cat((before[shared].expand(len(after), -1, -1, -1), after), dim=2)
                for before, after in ((prefix_keys, k), (prefix_values, v))
            )
        if k.shape[2]:
            mixed[rows] = attend(query[rows], k, v, scale)
    return mixed


@kernel
def _sight(row, starts_ptr, ends_ptr, lengths_ptr, prefix_rows_ptr, capacity, prefixes, prefix_capacity):
    """Which keys a row sees: its prefix, how many of that, its first own key, and how many keys in all.

    Held within what there is: no number of a tensor can lead outside.
    """
    start = 0
    end = capacity
    if starts_ptr is not None:
        start = tl.minimum(tl.maximum(tl.load(starts_ptr + row), 0), capacity).to(tl.int32)
    if ends_ptr is not None:
        end = tl.minimum(tl.load(ends_ptr + row), capacity).to(tl.int32)
    prefix = row * 0
    length = 0
    if prefix_rows_ptr is not None:
        prefix = tl.load(prefix_rows_ptr + row).to(tl.int64)
        shares = (prefix >= 0) & (prefix < prefixes)
        prefix = tl.where(shares, prefix, 0)
        length = tl.load(lengths_ptr + prefix, mask=shares, other=0)
        length = tl.minimum(tl.maximum(length, 0), prefix_capacity).to(tl.int32)
    return prefix, length, start, length + tl.maximum(end - start, 0)


@kernel
def _read(
    own_ptr,
    shared_ptr,
    position,
    component,
    length,
    start,
    visible,
    width,
    stride_own,
    stride_shared,
):
    """Keys or values at `position` of those that a row sees: the first `length` from its prefix."""
    inside = component[None, :] < width
    own = position - length
    mask = ((own >= 0) & (position < visible))[:, None] & inside
    offset = (own + start).to(tl.int64)[:, None] * stride_own + component[None, :]
    read = tl.load(own_ptr + offset, mask=mask, other=0.0)
    if shared_ptr is not None:
        mask = (own < 0)[:, None] & inside
        offset = position.to(tl.int64)[:, None] * stride_shared + component[None, :]
        read = tl.where((own < 0)[:, None], tl.load(shared_ptr + offset, mask=mask, other=0.0), read)
    return read


# A cache's view grows with every step, and one compiled kernel does the same sums in the same order.
_kernel = partial(
    kernel, sizes=("kv_heads", "group", "heads", "capacity", "prefixes", "prefix_capacity", "splits")
)


@_kernel
def _decode_split_kernel(
    query_ptr,
    keys_ptr,
    values_ptr,
    starts_ptr,
    ends_ptr,
    prefix_keys_ptr,
    prefix_values_ptr,
    lengths_ptr,
    prefix_rows_ptr,
    mixed_ptr,
    maxima_ptr,
    totals_ptr,
    kv_heads,
    group,
    capacity,
    prefixes,
    prefix_capacity,
    splits,
    width,
    scale,
    stride_query_row,
    stride_query_head,
    stride_keys_row,
    stride_keys_head,
    stride_keys_key,
    stride_values_row,
    stride_values_head,
    stride_values_key,
    stride_prefix_keys_row,
    stride_prefix_keys_head,
    stride_prefix_keys_key,
    stride_prefix_values_row,
    stride_prefix_values_head,
    stride_prefix_values_key,
    SPLIT: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One piece of a row's keys and one key-value head: softmax within the piece, not yet divided."""
    parts = tl.cdiv(group, HEADS)
    program = tl.program_id(0)
    split = tl.program_id(1)
    row = (program // (kv_heads * parts)).to(tl.int64)
    kv_head = (program // parts % kv_heads).to(tl.int64)
    prefix, length, start, visible = _sight(
        row, starts_ptr, ends_ptr, lengths_ptr, prefix_rows_ptr, capacity, prefixes, prefix_capacity
    )
    if split * SPLIT < visible:
        position = split * SPLIT + tl.arange(0, SPLIT)
        component = tl.arange(0, WIDTH)
        shared_keys_ptr = prefix_keys_ptr
        shared_values_ptr = prefix_values_ptr
        if prefix_keys_ptr is not None:
            shared_keys_ptr += prefix * stride_prefix_keys_row + kv_head * stride_prefix_keys_head
            shared_values_ptr += prefix * stride_prefix_values_row + kv_head * stride_prefix_values_head
        keys = _read(
            keys_ptr + row * stride_keys_row + kv_head * stride_keys_head,
            shared_keys_ptr,
            position,
            component,
            length,
            start,
            visible,
            width,
            stride_keys_key,
            stride_prefix_keys_key,
        )
        values = _read(
            values_ptr + row * stride_values_row + kv_head * stride_values_head,
            shared_values_ptr,
            position,
            component,
            length,
            start,
            visible,
            width,
            stride_values_key,
            stride_prefix_values_key,
        )
        if HEADS == 1:
            head = kv_head
            slot = (row * kv_heads + head) * splits + split
            query_ptr += row * stride_query_row + head * stride_query_head
            query = tl.load(query_ptr + component, mask=component < width, other=0.0).to(tl.float32)
            scores = tl.sum(keys.to(tl.float32) * query[None, :], axis=1) * tl.cast(scale, tl.float32)
            scores = tl.where(position < visible, scores, float("-inf"))
            most = tl.max(scores, axis=0)
            weights = tl.exp2(scores - most)
            mixed = tl.sum(weights[:, None] * values.to(tl.float32), axis=0)
            tl.store(mixed_ptr + slot * width + component, mixed, mask=component < width)
            tl.store(maxima_ptr + slot, most)
            tl.store(totals_ptr + slot, tl.sum(weights, axis=0))
        else:
            member = program % parts * HEADS + tl.arange(0, HEADS)
            head = kv_head * group + member
            slot = (row * (kv_heads * group) + head) * splits + split
            mask = (member < group)[:, None] & (component[None, :] < width)
            query_ptr += row * stride_query_row
            query = tl.load(
                query_ptr + head[:, None] * stride_query_head + component[None, :], mask=mask, other=0.0
            )
            scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * tl.cast(scale, tl.float32)
            scores = tl.where((position < visible)[None, :], scores, float("-inf"))
            most = tl.max(scores, axis=1)
            weights = tl.exp2(scores - most[:, None])
            mixed = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            tl.store(mixed_ptr + slot[:, None] * width + component[None, :], mixed, mask=mask)
            tl.store(maxima_ptr + slot, most, mask=member < group)
            tl.store(totals_ptr + slot, tl.sum(weights, axis=1), mask=member < group)


@_kernel
def _decode_combine_kernel(
    mixed_ptr,
    maxima_ptr,
    totals_ptr,
    output_ptr,
    starts_ptr,
    ends_ptr,
    lengths_ptr,
    prefix_rows_ptr,
    heads,
    capacity,
    prefixes,
    prefix_capacity,
    splits,
    width,
    SPLIT: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One row's head: its pieces weighed against each other and divided by the sum of all weights."""
    program = tl.program_id(0).to(tl.int64)
    _, _, _, visible = _sight(
        program // heads,
        starts_ptr,
        ends_ptr,
        lengths_ptr,
        prefix_rows_ptr,
        capacity,
        prefixes,
        prefix_capacity,
    )
    component = tl.arange(0, WIDTH)
    inside = component < width
    most = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    mixed = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, tl.cdiv(visible, SPLIT), CHUNK):
        split = first + tl.arange(0, CHUNK)
        # Empty pieces were not written; here they weigh nothing.
        real = split * SPLIT < visible
        slot = program * splits + split
        maxima = tl.load(maxima_ptr + slot, mask=real, other=float("-inf"))
        totals = tl.load(totals_ptr + slot, mask=real, other=0.0)
        offset = slot[:, None] * width + component[None, :]
        pieces = tl.load(mixed_ptr + offset, mask=real[:, None] & inside[None, :], other=0.0)
        higher = tl.maximum(most, tl.max(maxima, axis=0))
        weights = tl.exp2(maxima - higher)
        carried = tl.exp2(most - higher)
        total = total * carried + tl.sum(totals * weights, axis=0)
        mixed = mixed * carried + tl.sum(pieces * weights[:, None], axis=0)
        most = higher
    mixed = mixed / tl.where(visible > 0, total, 1.0)
    tl.store(output_ptr + program * width + component, mixed.to(output_ptr.dtype.element_ty), mask=inside)


def _launch_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    prefix_keys: Tensor | None,
    prefix_values: Tensor | None,
    prefix_lengths: Tensor | None,
    prefix_rows: Tensor | None,
    scale: float | None,
) -> Tensor:
    rows, heads, width = query.shape
    kv_heads, capacity = keys.shape[1:3]
    group = heads // kv_heads
    served = 1 if group == 1 else HEADS
    if query.stride(2) != 1:
        query = query.contiguous()
    prefixes, prefix_capacity = (
        (0, 0) if prefix_keys is None else (prefix_keys.shape[0], prefix_keys.shape[2])
    )
    sight: dict[str, Any] = {
        "starts_ptr": None if starts is None else starts.contiguous(),
        "ends_ptr": None if ends is None else ends.contiguous(),
        "lengths_ptr": None if prefix_lengths is None else prefix_lengths.contiguous(),
        "prefix_rows_ptr": None if prefix_rows is None else prefix_rows.contiguous(),
        "capacity": capacity,
        "prefixes": prefixes,
        "prefix_capacity": prefix_capacity,
    }
    splits = blocks(capacity + prefix_capacity, SPLIT)  # at most: only the device knows what rows see
    device = query.device
    mixed = torch.empty(rows, heads, splits, width, device=device, dtype=torch.float32)
    maxima = torch.empty(rows, heads, splits, device=device, dtype=torch.float32)
    totals = torch.empty(rows, heads, splits, device=device, dtype=torch.float32)
    strides: dict[str, Any] = {
        f"stride_{name}_{part}": 0 if tensor is None else tensor.stride(dim)
        for name, tensor in (
            ("keys", keys),
            ("values", values),
            ("prefix_keys", prefix_keys),
            ("prefix_values", prefix_values),
        )
        for dim, part in enumerate(("row", "head", "key"))
    }
    block = 128 if width <= 128 else WIDEST
    launch(
        _decode_split_kernel,
        (rows * kv_heads * blocks(group, served), splits),
        query_ptr=query,
        keys_ptr=keys,
        values_ptr=values,
        prefix_keys_ptr=prefix_keys,
        prefix_values_ptr=prefix_values,
        mixed_ptr=mixed,
        maxima_ptr=maxima,
        totals_ptr=totals,
        kv_heads=kv_heads,
        group=group,
        splits=splits,
        width=width,
        scale=math.log2(math.e) * (width**-0.5 if scale is None else scale),
        stride_query_row=query.stride(0),
        stride_query_head=query.stride(1),
        SPLIT=SPLIT,
        HEADS=served,
        WIDTH=block,
        options={"num_warps": 8 if block == WIDEST or (served > 1 and query.dtype == torch.float32) else 4},
        **sight,
        **strides,
    )
    output = torch.empty(rows, heads, width, device=device, dtype=query.dtype)
    launch(
        _decode_combine_kernel,
        (rows * heads,),
        mixed_ptr=mixed,
        maxima_ptr=maxima,
        totals_ptr=totals,
        output_ptr=output,
        heads=heads,
        splits=splits,
        width=width,
        SPLIT=SPLIT,
        CHUNK=CHUNK,
        WIDTH=block,
        options={"num_warps": 4},
        **sight,
    )
    return output


def _check(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    prefix_keys: Tensor | None,
    prefix_values: Tensor | None,
    prefix_lengths: Tensor | None,
    prefix_rows: Tensor | None,
    scale: float | None,
) -> None:
    if query.ndim != 3 or not query.is_floating_point() or 0 in query.shape[1:]:
        raise ValueError(f"query must be (B, H, d) floats, not {tuple(query.shape)} {query.dtype}")
    rows, heads, width = query.shape
    if keys.ndim != 4 or keys.shape[0] != rows or keys.shape[3] != width:
        raise ValueError(f"keys must be ({rows}, G, C, {width}) as query is, not {tuple(keys.shape)}")
    kv_heads = keys.shape[1]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"heads must be a multiple of the key-value heads, not {heads} of {kv_heads}")
    if values.shape != keys.shape:
        raise ValueError(f"values must be {tuple(keys.shape)} as keys are, not {tuple(values.shape)}")
    prefix = (prefix_keys, prefix_values, prefix_lengths, prefix_rows)
    if len({tensor is None for tensor in prefix}) != 1:
        raise ValueError("a prefix is keys, values, lengths and rows, all of them or none")
    count = 0
    if prefix_keys is not None and prefix_values is not None:
        count, length = (*prefix_keys.shape, 0, 0, 0)[:3:2]
        wanted = (count, kv_heads, length, width)
        for name, tensor in (("keys", prefix_keys), ("values", prefix_values)):
            if tensor.shape != wanted:
                raise ValueError(
                    f"the prefix's {name} must be (P, {kv_heads}, L, {width}) and alike, not "
                    f"{tuple(tensor.shape)}"
                )
    floats = {"keys": keys, "values": values, "prefix's keys": prefix_keys, "prefix's values": prefix_values}
    for name, given in floats.items():
        if given is not None and given.dtype != query.dtype:
            raise ValueError(f"the {name} must be {query.dtype} as query is, not {given.dtype}")
        if given is not None and given.stride(3) != 1:
            raise ValueError(f"the {name} must have a last stride of 1, not {given.stride(3)}")
    whole = {
        "starts": (starts, rows),
        "ends": (ends, rows),
        "prefix's lengths": (prefix_lengths, count),
        "prefix's rows": (prefix_rows, rows),
    }
    for name, (numbers, size) in whole.items():
        if numbers is not None and (
            numbers.shape != (size,) or numbers.dtype not in (torch.int32, torch.int64)
        ):
            raise ValueError(
                f"the {name} must be ({size},) int32 or int64, not {tuple(numbers.shape)} {numbers.dtype}"
            )
    everything = floats | {name: numbers for name, (numbers, _) in whole.items()}
    for name, given in everything.items():
        if given is not None and given.device != query.device:
            raise ValueError(f"the {name} must be on {query.device} as query is, not {given.device}")
    if scale is not None:
        require_number("scale", scale, "a finite number")


def _chosen(query: Tensor, keys: Tensor) -> str:
    """The implementation for these queries and keys."""
    width = query.shape[2]
    grouped = query.shape[1] != keys.shape[1]
    # The tiles of grouped heads in float32 would not fit the shared memory of smaller chips.
    widest = WIDEST // 2 if grouped and query.dtype == torch.float32 else WIDEST
    fits = width % 16 == 0 and width <= widest
    unable = None if fits else f"it takes head widths of multiples of 16 up to {widest}, not {width}"
    return choice.implementation("decode_attention", query, unable=unable)


@torch.library.custom_op("janus::decode_attention", mutates_args=())
def decode_attention_op(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    prefix_keys: Tensor | None,
    prefix_values: Tensor | None,
    prefix_lengths: Tensor | None,
    prefix_rows: Tensor | None,
    scale: float | None,
) -> Tensor:
    prefix = (prefix_keys, prefix_values, prefix_lengths, prefix_rows)
    _check(query, keys, values, starts, ends, *prefix, scale)
    runs = _launch_decode_attention if _chosen(query, keys) == "triton" else decode_attention_reference
    return runs(query, keys, values, starts, ends, *prefix, scale).contiguous()


@decode_attention_op.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    prefix_keys: Tensor | None,
    prefix_values: Tensor | None,
    prefix_lengths: Tensor | None,
    prefix_rows: Tensor | None,
    scale: float | None,
) -> Tensor:
    prefix = (prefix_keys, prefix_values, prefix_lengths, prefix_rows)
    _check(query, keys, values, starts, ends, *prefix, scale)
    return query.new_empty(query.shape)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    prefix: SharedPrefix | None = None,
    scale: float | None = None,
) -> Tensor:
    """One query per row, (B, H, d), over keys and values (B, G, C, d) -> (B, H, d).

    Keys and values may be views with any strides but the last, which is 1; H is a multiple of G. Row b sees
    keys starts[b] to ends[b], (B,) int32 or int64 on the same device (0 and C where there are none; numbers
    beyond what there is are held within it), and before them those of its `prefix`. A row that sees no key
    gives zeros. `scale` is 1 / sqrt(d) unless given.

    On a GPU nothing waits for the device, so that a CUDA graph can be captured, and a row's result is the
    same to the bit whatever is beside it, wherever its keys are, and however many it does not see, as long as
    keys begin at multiples of 16 bytes. Raises ValueError for shapes, dtypes, strides or devices that do not
    fit.
    """
    of_prefix: OfPrefix = NO_PREFIX
    if prefix is not None:
        of_prefix = (prefix.keys, prefix.values, prefix.lengths, prefix.rows)
    _check(query, keys, values, starts, ends, *of_prefix, scale)
    # No kernel has a backward pass through a cache: where a gradient is asked for, PyTorch's operations run.
    tracked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, keys, values))
    # The reference reads numbers on the host, which a compiler cannot: to it the op is opaque.
    opaque = not tracked and (_chosen(query, keys) == "triton" or torch.compiler.is_compiling())
    runs = decode_attention_op if opaque else decode_attention_reference
    return runs(query, keys, values, starts, ends, *of_prefix, scale)


def compiled_for_cpu() -> Callable[..., Tensor]:
    """`decode_attention`, without a prefix, through torch.compile: on a CPU in 16 bits it reads keys faster.

    What it is compiled of serves any number of keys.
    """
    attend = torch.compile(_attend_plainly)

    def attention(
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        starts: Tensor | None = None,
        ends: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        return decode_attention_reference(query, keys, values, starts, ends, *NO_PREFIX, scale, attend)

    return attention


def every_launch() -> Iterator[Callable[[], object]]:
    """Calls on "meta" tensors that together launch every configuration of these kernels.

    What a row may go without, bounds and a prefix, is left out once: it leaves less of the same kernel.
    """

    def call(dtype: torch.dtype, heads: int, width: int, *, bounds: bool, prefix: bool) -> partial[Tensor]:
        def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        cache, shared = tensor(32, 16, 640, width), tensor(3, 16, 64, width)
        limits = tensor(32, dtype=torch.int64) if bounds else None
        of_prefix = (shared, shared, tensor(3, dtype=torch.int64), tensor(32, dtype=torch.int64))
        return partial(
            _launch_decode_attention,
            *(tensor(32, heads, width), cache, cache, limits, limits),
            *(of_prefix if prefix else NO_PREFIX),
            None,
        )

    for heads in (16, 64):
        for dtype in DTYPES:
            for width in (128,) if heads > 16 and dtype == torch.float32 else (128, WIDEST):
                yield call(dtype, heads, width, bounds=True, prefix=True)
        yield call(torch.bfloat16, heads, 128, bounds=True, prefix=False)
        yield call(torch.bfloat16, heads, 128, bounds=False, prefix=False)
