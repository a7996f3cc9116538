"""Rotary positions, and with them the write into a static cache of keys and values.

B rows, S positions of this call, C positions of the cache, H heads, G key-value heads, d head width. Source:
Su et al., "RoFormer" (2021), in the half-split form of Llama in transformers: component i turns with i + d/2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from janus.kernels import choice
from janus.kernels.launch import DTYPES, blocks, kernel, launch, power_of_two, tl

WIDEST = 256  # a program keeps a tile of whole heads in registers


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions in the half-split form: x (B, H, S, d), tables (B or 1, 1, S, d). Differentiable.

    The result is of x's dtype; the tables, which autocast leaves in float32, are cast to it.
    """
    cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosines: Tensor,
    sines: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
) -> None:
    if query.ndim != 4 or query.shape[3] % 2 or not query.is_floating_point():
        raise ValueError(
            f"queries must be (B, H, S, d) floats, d even, not {tuple(query.shape)} {query.dtype}"
        )
    if key.ndim != 4 or key_cache.ndim != 4:
        raise ValueError(
            "keys must be (B, G, S, d) and their cache (B, G, C, d), "
            f"not {tuple(key.shape)} and {tuple(key_cache.shape)}"
        )
    rows, _, positions, width = query.shape
    groups, capacity = key.shape[1], key_cache.shape[2]
    ours, cache = (rows, groups, positions, width), (rows, groups, capacity, width)
    table = (1 if cosines.shape[:1] == (1,) else rows, 1, positions, width)
    for name, tensor, shape in (
        ("keys", key, ours),
        ("values", value, ours),
        ("cosines", cosines, table),
        ("sines", sines, table),
        ("the cache of keys", key_cache, cache),
        ("the cache of values", value_cache, cache),
    ):
        if tensor.shape != shape or tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name} must be {shape} {query.dtype} on {query.device} for queries {tuple(query.shape)}, "
                f"not {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )
    if position.numel() != 1 or position.dtype != torch.int64 or position.device != query.device:
        raise ValueError(
            f"the position must be one torch.int64 on {query.device}, "
            f"not {tuple(position.shape)} {position.dtype} on {position.device}"
        )
    if positions > capacity:
        raise ValueError(f"a cache of {capacity} positions has no room for {positions}")


def _check_position(position: Tensor, positions: int, capacity: int) -> None:
    """On a CPU, where to look costs nothing."""
    begin = int(position)
    if not 0 <= begin <= capacity - positions:
        raise ValueError(
            f"a cache of {capacity} positions has no room for {positions} from position {begin} on"
        )


# --- reference ---


def _store(cache: Tensor, new: Tensor, position: Tensor) -> None:
    """Write new (B, G, S, d) into the cache at `position`, which is not waited for.

    What would lie outside is left out: a window inside the cache is written, and keeps what it held where
    nothing new falls.
    """
    positions, capacity = new.shape[2], cache.shape[2]
    window = torch.arange(positions, device=new.device)
    target = position.view(1).clamp(0, capacity - positions) + window
    source = target - position.view(1)
    falls = ((source >= 0) & (source < positions))[:, None]
    moved = new.index_select(2, source.clamp(0, positions - 1))
    cache.index_copy_(2, target, torch.where(falls, moved, cache.index_select(2, target)))


def rotate_and_store_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosines: Tensor,
    sines: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
) -> Tensor:
    """As `rotate_and_store`."""
    if position.device.type == "cpu":
        _check_position(position, query.shape[2], key_cache.shape[2])
    for cache, new in ((key_cache, rotate(key, cosines, sines)), (value_cache, value)):
        if position.device.type == "cpu":
            cache.narrow(2, int(position), new.shape[2]).copy_(new)
        elif new.numel():
            _store(cache, new, position)
    return rotate(query, cosines, sines).contiguous()


# --- kernel ---


@kernel
def _rotate_and_store_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    cosines_ptr,
    sines_ptr,
    key_cache_ptr,
    value_cache_ptr,
    position_ptr,
    rotated_ptr,
    heads,
    groups,
    positions,
    capacity,
    stride_query_row,
    stride_query_head,
    stride_query_position,
    stride_key_row,
    stride_key_head,
    stride_key_position,
    stride_value_row,
    stride_value_head,
    stride_value_position,
    stride_table_row,
    stride_key_cache_row,
    stride_key_cache_head,
    stride_key_cache_position,
    stride_value_cache_row,
    stride_value_cache_head,
    stride_value_cache_position,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """Some positions of one head: the heads of the queries first, then the keys', then the values'."""
    together = heads + 2 * groups
    row = (tl.program_id(0) // together).to(tl.int64)
    head = (tl.program_id(0) % together).to(tl.int64)
    place = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    component = tl.arange(0, BLOCK_HALF)[None, :]
    HALF: tl.constexpr = WIDTH // 2
    mask = (place < positions) & (component < HALF)
    stored = tl.load(position_ptr) + place
    fits = mask & (stored >= 0) & (stored < capacity)
    if head < heads + groups:
        if head < heads:
            source = query_ptr + row * stride_query_row + head * stride_query_head
            source += place * stride_query_position + component
            target = rotated_ptr + ((row * heads + head) * positions + place) * WIDTH + component
            written = mask
        else:
            head -= heads
            source = key_ptr + row * stride_key_row + head * stride_key_head
            source += place * stride_key_position + component
            target = key_cache_ptr + row * stride_key_cache_row + head * stride_key_cache_head
            target += stored * stride_key_cache_position + component
            written = fits
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
        table = row * stride_table_row + place * WIDTH + component
        cosine = tl.load(cosines_ptr + table, mask=mask, other=0.0).to(tl.float32)
        sine = tl.load(sines_ptr + table, mask=mask, other=0.0).to(tl.float32)
        dtype = rotated_ptr.dtype.element_ty
        # Each product is rounded before the sum, as eager PyTorch rounds it.
        turned = (first * cosine).to(dtype).to(tl.float32) - (second * sine).to(dtype).to(tl.float32)
        tl.store(target, turned.to(dtype), mask=written)
        cosine = tl.load(cosines_ptr + table + HALF, mask=mask, other=0.0).to(tl.float32)
        sine = tl.load(sines_ptr + table + HALF, mask=mask, other=0.0).to(tl.float32)
        turned = (second * cosine).to(dtype).to(tl.float32) + (first * sine).to(dtype).to(tl.float32)
        tl.store(target + HALF, turned.to(dtype), mask=written)
    else:
        head -= heads + groups
        source = value_ptr + row * stride_value_row + head * stride_value_head
        source += place * stride_value_position + component
        target = value_cache_ptr + row * stride_value_cache_row + head * stride_value_cache_head
        target += stored * stride_value_cache_position + component
        tl.store(target, tl.load(source, mask=mask, other=0.0), mask=fits)
        tl.store(target + HALF, tl.load(source + HALF, mask=mask, other=0.0), mask=fits)


def _chosen(query: Tensor, key_cache: Tensor, value_cache: Tensor) -> str:
    """The implementation for these heads and caches."""
    width, unable = query.shape[3], None
    if width % 16 or not 16 <= width <= WIDEST:
        unable = f"it takes heads of width 16, 32, ... {WIDEST}, not {width}"
    elif key_cache.stride(3) != 1 or value_cache.stride(3) != 1:
        unable = "it takes caches whose heads are contiguous"
    return choice.implementation("rotary", query, unable=unable)


def _launch_rotate_and_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosines: Tensor,
    sines: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
) -> Tensor:
    rows, heads, positions, width = query.shape
    groups = key.shape[1]
    rotated = query.new_empty(query.shape)
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    half = max(32, power_of_two(width // 2))
    # A step of one position takes a warp for each head, a prompt tiles of 8 pairs a thread.
    block, warps = (1, 1) if positions == 1 else (1024 // half, 4)
    launch(
        _rotate_and_store_kernel,
        (rows * (heads + 2 * groups), blocks(positions, block)),
        query_ptr=query,
        key_ptr=key,
        value_ptr=value,
        cosines_ptr=cosines.contiguous(),
        sines_ptr=sines.contiguous(),
        key_cache_ptr=key_cache,
        value_cache_ptr=value_cache,
        position_ptr=position,
        rotated_ptr=rotated,
        heads=heads,
        groups=groups,
        positions=positions,
        capacity=key_cache.shape[2],
        stride_query_row=query.stride(0),
        stride_query_head=query.stride(1),
        stride_query_position=query.stride(2),
        stride_key_row=key.stride(0),
        stride_key_head=key.stride(1),
        stride_key_position=key.stride(2),
        stride_value_row=value.stride(0),
        stride_value_head=value.stride(1),
        stride_value_position=value.stride(2),
        stride_table_row=0 if cosines.shape[0] == 1 else positions * width,
        stride_key_cache_row=key_cache.stride(0),
        stride_key_cache_head=key_cache.stride(1),
        stride_key_cache_position=key_cache.stride(2),
        stride_value_cache_row=value_cache.stride(0),
        stride_value_cache_head=value_cache.stride(1),
        stride_value_cache_position=value_cache.stride(2),
        WIDTH=width,
        BLOCK=block,
        BLOCK_HALF=half,
        # A fused multiply-add would not round the product: float32 would differ from eager PyTorch.
        options={"num_warps": warps, "enable_fp_fusion": False},
    )
    return rotated


@torch.library.custom_op("janus::rotate_and_store", mutates_args=("key_cache", "value_cache"))
def rotate_and_store_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosines: Tensor,
    sines: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
) -> Tensor:
    arguments = (query, key, value, cosines, sines, key_cache, value_cache, position)
    _check(*arguments)
    if _chosen(query, key_cache, value_cache) == "triton":
        if position.device.type == "cpu":
            _check_position(position, query.shape[2], key_cache.shape[2])
        return _launch_rotate_and_store(*arguments)
    return rotate_and_store_reference(*arguments)


@rotate_and_store_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosines: Tensor,
    sines: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
) -> Tensor:
    _check(query, key, value, cosines, sines, key_cache, value_cache, position)
    return query.new_empty(query.shape)


def rotate_and_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosines: Tensor,
    sines: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
) -> Tensor:
    """Rotate queries (B, H, S, d) and return them; rotate keys, and put them and the values into the caches.

    Keys and values are (B, G, S, d), the tables (B or 1, 1, S, d), the caches (B, G, C, d), all of one dtype;
    any of them may be strided views. `position` is one int64 on the same device, so that a recorded CUDA
    graph can be replayed as it advances: [position, position + S) of the caches is written. Rounded as
    `rotate` rounds. Raises ValueError for shapes, dtypes or devices that do not fit, and on a CPU for
    positions outside the caches, which are not written on a GPU.

    Where a gradient is asked for, PyTorch's own operations run: a cache is for inference, and no kernel has a
    backward pass through it.
    """
    arguments = (query, key, value, cosines, sines, key_cache, value_cache, position)
    _check(*arguments)
    tracked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments)
    # The reference looks at the position on a CPU, which a compiler cannot: to it the op is opaque.
    if not tracked and (_chosen(query, key_cache, value_cache) == "triton" or torch.compiler.is_compiling()):
        return rotate_and_store_op(*arguments)
    return rotate_and_store_reference(*arguments)


def every_launch() -> Iterator[Callable[[], object]]:
    """Calls on "meta" tensors that together launch every configuration of this kernel.

    One width stands for all whose halves are rounded to the same power of two.
    """
    for dtype in DTYPES:
        for width in (64, 128, WIDEST):
            cache = torch.empty(2, 16, 1024, width, dtype=dtype, device="meta")
            position = torch.empty((), dtype=torch.int64, device="meta")
            for positions in (1, 606):
                projected = torch.empty(2, positions, 3 * 16 * width, dtype=dtype, device="meta")
                query, key, value = projected.unflatten(-1, (3, 16, width)).permute(2, 0, 3, 1, 4)
                table = torch.empty(1, 1, positions, width, dtype=dtype, device="meta")
                heads = query, key, value, table, table, cache, cache, position
                yield partial(_launch_rotate_and_store, *heads)
