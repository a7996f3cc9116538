"""The codebook: the code nearest to each latent, and the entries of codes. All at unit length.

N latents, or B pictures of (h, w) positions each; K codes; C is the width of latents and codes. Source: the
original's vq_model.py (`VectorQuantizer`), whose formula decides near-ties: |z|^2 + |e|^2 - 2 z.e in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from janus.kernels import choice
from janus.kernels.launch import DTYPES, blocks, kernel, launch, tl

TINY = 1e-12  # F.normalize's: below it a vector is not scaled up to unit length
CHUNK = 32  # latents that the reference scores at once on a CPU: 32 x 16,384 distances stay in a core's cache
LARGE_CHUNK = 1024  # and elsewhere, where every chunk is a handful of launches
GROUP = 128  # codes whose least distance the reference finds before it looks which code has it
WIDEST = 16  # the kernels keep a latent in registers, component by component


def _check_codebook(codebook: Tensor) -> None:
    if codebook.ndim != 2 or not codebook.is_floating_point() or 0 in codebook.shape:
        raise ValueError(
            "the codebook must be (K, C) floats, with at least one of each, not "
            f"{tuple(codebook.shape)} {codebook.dtype}"
        )


def _check_latents(latents: Tensor, codebook: Tensor) -> None:
    _check_codebook(codebook)
    width = codebook.shape[1]
    if latents.ndim not in (2, 4) or latents.shape[1] != width or not latents.is_floating_point():
        raise ValueError(
            f"latents must be (N, {width}) or (B, {width}, h, w) floats for a codebook of width {width}, "
            f"not {tuple(latents.shape)} {latents.dtype}"
        )
    if latents.device != codebook.device:
        raise ValueError(f"latents are on {latents.device}, and the codebook on {codebook.device}")


def _check_codes(codes: Tensor, codebook: Tensor) -> None:
    _check_codebook(codebook)
    if codes.ndim != 3 or codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"codes must be (B, h, w) integers, not {tuple(codes.shape)} {codes.dtype}")
    if codes.device != codebook.device:
        raise ValueError(f"codes are on {codes.device}, and the codebook on {codebook.device}")


def _chosen(codebook: Tensor) -> str:
    """The implementation for this codebook."""
    width = codebook.shape[1]
    unable = None if width <= WIDEST else f"it takes codes of width {WIDEST} at most, not {width}"
    return choice.implementation("codebook", codebook, unable=unable)


def _by_position(latents: Tensor) -> Tensor:
    """(N, C) or (B, C, h, w) -> (B, C, positions), without a copy where strides allow."""
    return latents.t()[None] if latents.ndim == 2 else latents.flatten(2)


def _like_positions(codes: Tensor, latents: Tensor) -> Tensor:
    """Codes of all positions in reading order, (N,) -> (N,) or (B, h, w)."""
    return codes if latents.ndim == 2 else codes.view(latents.shape[0], *latents.shape[2:])


# --- the nearest code ---


def nearest_code_reference(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `nearest_code`. A few latents at a time, so that memory does not grow with their number."""
    rows = _by_position(latents.detach()).transpose(1, 2).reshape(-1, codebook.shape[1])
    z = F.normalize(rows.float(), dim=1)
    e = F.normalize(codebook.detach().float(), dim=1)
    lengths, entry_lengths, transposed = z.pow(2).sum(1, keepdim=True), e.pow(2).sum(1), e.t().contiguous()
    # Whole groups of codes: what is added is infinitely far away. (One group where the codes are few.)
    spare = -len(e) % GROUP
    size = CHUNK if z.device.type == "cpu" else LARGE_CHUNK
    distances = torch.full((min(size, len(z)), len(e) + spare), torch.inf, device=z.device)
    nearest = torch.empty(len(z), dtype=torch.long, device=z.device)
    for first in range(0, len(z), size):
        chunk = slice(first, first + size)
        ours = distances[: len(z[chunk])]
        scored = ours[:, : len(e)]
        torch.add(lengths[chunk], entry_lengths, out=scored)
        scored.addmm_(
            z[chunk], transposed, alpha=-2
        )  # in place: one pass over the distances instead of three
        # The least of each group is found with vector instructions, which argmin does not use.
        grouped = ours.view(len(ours), -1, GROUP)
        group = grouped.amin(dim=2).argmin(dim=1)
        within = grouped[torch.arange(len(ours), device=z.device), group].argmin(dim=1)
        nearest[chunk] = group * GROUP + within
    return _like_positions(nearest, latents)


@kernel
def _prepare_kernel(
    codebook_ptr,
    entries_ptr,
    codes,
    stride_code,
    stride_width,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TINY: tl.constexpr,
):
    """Entries at unit length, (C, K), and in a last row their squared lengths: 1, but for rounding."""
    code = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = code < codes
    start = codebook_ptr + code.to(tl.int64) * stride_code
    total = tl.zeros((BLOCK,), tl.float32)
    for component in tl.static_range(WIDTH):
        value = tl.load(start + component * stride_width, mask=mask, other=0.0).to(tl.float32)
        total = tl.fma(value, value, total)
    length = tl.maximum(tl.sqrt_rn(total), tl.cast(TINY, tl.float32))
    total = tl.zeros((BLOCK,), tl.float32)
    for component in tl.static_range(WIDTH):
        value = tl.load(start + component * stride_width, mask=mask, other=0.0).to(tl.float32)
        value = tl.div_rn(value, length)
        total = tl.fma(value, value, total)
        tl.store(entries_ptr + component * codes + code, value, mask=mask)
    tl.store(entries_ptr + WIDTH * codes + code, total, mask=mask)


@kernel
def _nearest_kernel(
    latents_ptr,
    entries_ptr,
    distances_ptr,
    nearest_ptr,
    rows,
    positions,
    codes,
    codes_per_split,
    stride_picture,
    stride_width,
    stride_position,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    TINY: tl.constexpr,
):
    """The nearest among one split of the codes to each of a block of latents, and how far it is."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    split = tl.program_id(1)
    real = row < rows
    start = latents_ptr + row // positions * stride_picture + row % positions * stride_position
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    raw = ()
    for component in tl.static_range(WIDTH):
        value = tl.load(start + component * stride_width, mask=real, other=0.0).to(tl.float32)
        total = tl.fma(value, value, total)
        raw = raw + (value,)  # type: ignore[assignment]  # noqa: RUF005 (Triton knows no *)
    length = tl.maximum(tl.sqrt_rn(total), tl.cast(TINY, tl.float32))
    # One vector of registers per component: latents are normalized once and read for every code.
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    latent = ()
    for component in tl.static_range(WIDTH):
        value = tl.div_rn(raw[component], length)
        total = tl.fma(value, value, total)
        latent = latent + (value,)  # type: ignore[assignment]  # noqa: RUF005

    # Every place of the tile keeps its own best; a later code must be nearer, so the lowest index wins a tie.
    best = tl.full((BLOCK_ROWS, BLOCK_CODES), float("inf"), tl.float32)
    best_code = tl.zeros((BLOCK_ROWS, BLOCK_CODES), tl.int32)
    first = split * codes_per_split
    for begin in range(first, tl.minimum(first + codes_per_split, codes), BLOCK_CODES):
        code = begin + tl.arange(0, BLOCK_CODES)
        inside = code < codes
        # Float32 units, not tensor cores: a TF32 product would confuse near codes.
        product = tl.zeros((BLOCK_ROWS, BLOCK_CODES), tl.float32)
        for component in tl.static_range(WIDTH):
            entry = tl.load(entries_ptr + component * codes + code, mask=inside, other=0.0)
            product = tl.fma(
                tl.broadcast_to(latent[component][:, None], (BLOCK_ROWS, BLOCK_CODES)),
                tl.broadcast_to(entry[None, :], (BLOCK_ROWS, BLOCK_CODES)),
                product,
            )
        entry_length = tl.load(entries_ptr + WIDTH * codes + code, mask=inside, other=float("inf"))
        distance = (total[:, None] + entry_length[None, :]) - 2.0 * product
        nearer = distance < best
        best = tl.where(nearer, distance, best)
        best_code = tl.where(nearer, code[None, :], best_code)

    least = tl.min(best, axis=1)
    nearest = tl.min(tl.where(best == least[:, None], best_code, 2147483647), axis=1)
    # A latent of NaNs is nearest to nothing: code 0, as it must be one.
    nearest = tl.where(nearest == 2147483647, 0, nearest)
    tl.store(distances_ptr + split.to(tl.int64) * rows + row, least, mask=real)
    tl.store(nearest_ptr + split.to(tl.int64) * rows + row, nearest, mask=real)


@kernel
def _reduce_kernel(distances_ptr, nearest_ptr, codes_ptr, rows, splits, BLOCK: tl.constexpr):
    """The nearest of all splits: the first of equals, which has the lowest codes."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    least = tl.load(distances_ptr + row, mask=mask, other=0.0)
    nearest = tl.load(nearest_ptr + row, mask=mask, other=0)
    for split in range(1, splits):
        distance = tl.load(distances_ptr + tl.cast(split, tl.int64) * rows + row, mask=mask, other=0.0)
        code = tl.load(nearest_ptr + tl.cast(split, tl.int64) * rows + row, mask=mask, other=0)
        nearest = tl.where(distance < least, code, nearest)
        least = tl.minimum(distance, least)
    tl.store(codes_ptr + row, nearest.to(tl.int64), mask=mask)


BLOCK_ROWS, BLOCK_CODES = 64, 32
ENOUGH_PROGRAMS = 1024  # several for each multiprocessor of the largest chips


def _launch_nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    codes, width = codebook.shape
    by_position = _by_position(latents)
    pictures, _, positions = by_position.shape
    rows = pictures * positions
    device = latents.device
    entries = torch.empty(width + 1, codes, device=device, dtype=torch.float32)
    launch(
        _prepare_kernel,
        (blocks(codes, 128),),
        codebook_ptr=codebook,
        entries_ptr=entries,
        codes=codes,
        stride_code=codebook.stride(0),
        stride_width=codebook.stride(1),
        WIDTH=width,
        BLOCK=128,
        TINY=TINY,
        options={"num_warps": 4},
    )
    # Few latents would leave most of the chip idle: then the codes are split as well.
    tiles = blocks(codes, BLOCK_CODES)
    splits = max(1, min(tiles, ENOUGH_PROGRAMS // max(1, blocks(rows, BLOCK_ROWS))))
    codes_per_split = blocks(tiles, splits) * BLOCK_CODES
    splits = blocks(codes, codes_per_split)
    distances = torch.empty(splits, rows, device=device, dtype=torch.float32)
    nearest = torch.empty(splits, rows, device=device, dtype=torch.int32)
    launch(
        _nearest_kernel,
        (blocks(rows, BLOCK_ROWS), splits),
        latents_ptr=by_position,
        entries_ptr=entries,
        distances_ptr=distances,
        nearest_ptr=nearest,
        rows=rows,
        positions=positions,
        codes=codes,
        codes_per_split=codes_per_split,
        stride_picture=by_position.stride(0),
        stride_width=by_position.stride(1),
        stride_position=by_position.stride(2),
        WIDTH=width,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_CODES=BLOCK_CODES,
        TINY=TINY,
        options={"num_warps": 8},
    )
    found = torch.empty(rows, device=device, dtype=torch.long)
    launch(
        _reduce_kernel,
        (blocks(rows, 128),),
        distances_ptr=distances,
        nearest_ptr=nearest,
        codes_ptr=found,
        rows=rows,
        splits=splits,
        BLOCK=128,
        options={"num_warps": 4},
    )
    return _like_positions(found, latents)


@torch.library.custom_op("janus::nearest_code", mutates_args=())
def nearest_code_op(latents: Tensor, codebook: Tensor) -> Tensor:
    _check_latents(latents, codebook)
    runs = _launch_nearest_code if _chosen(codebook) == "triton" else nearest_code_reference
    return runs(latents, codebook)


@nearest_code_op.register_fake
def _(latents: Tensor, codebook: Tensor) -> Tensor:
    _check_latents(latents, codebook)
    shape = latents.shape[:1] if latents.ndim == 2 else (latents.shape[0], *latents.shape[2:])
    return latents.new_empty(shape, dtype=torch.long)


def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """The entry of `codebook` (K, C) nearest to each latent, both at unit length, as int64.

    Latents (N, C) -> (N,), or (B, C, h, w) -> (B, h, w). In float32 whatever comes in, by the original's own
    formula; the lowest of codes that are equally near. Nothing of size N x K is ever in memory. Raises
    ValueError for shapes, dtypes or devices that do not fit each other.
    """
    _check_latents(latents, codebook)
    return nearest_code_op(latents.detach(), codebook.detach())


# --- the entries of codes ---


def lookup_reference(codes: Tensor, codebook: Tensor) -> Tensor:
    """As `lookup`."""
    # In float32, where an entry of zeros stays one: 16 bits hold no number as small as what it is divided by.
    length = codebook.float().norm(dim=1, keepdim=True).to(codebook.dtype).float().clamp_min(TINY)
    entries = F.embedding(codes.long(), (codebook.float() / length).to(codebook.dtype))
    # Contiguous, or torch would run a decoder behind this in channels-last, where its error is tenfold.
    return entries.permute(0, 3, 1, 2).contiguous()


@kernel
def _lookup_kernel(
    codes_ptr,
    codebook_ptr,
    entries_ptr,
    rows,
    positions,
    stride_code,
    stride_width,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TINY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    code = tl.load(codes_ptr + row, mask=mask, other=0).to(tl.int64)
    start = codebook_ptr + code * stride_code
    total = tl.zeros((BLOCK,), tl.float32)
    for component in tl.static_range(WIDTH):
        value = tl.load(start + component * stride_width, mask=mask, other=0.0).to(tl.float32)
        total = tl.fma(value, value, total)
    # The length is rounded to the codebook's dtype, as F.normalize rounds it.
    length = tl.sqrt_rn(total).to(codebook_ptr.dtype.element_ty).to(tl.float32)
    length = tl.maximum(length, tl.cast(TINY, tl.float32))
    target = entries_ptr + row // positions * (WIDTH * positions) + row % positions
    for component in tl.static_range(WIDTH):
        value = tl.load(start + component * stride_width, mask=mask, other=0.0).to(tl.float32)
        value = tl.div_rn(value, length).to(entries_ptr.dtype.element_ty)
        tl.store(target + component * positions, value, mask=mask)


def _launch_lookup(codes: Tensor, codebook: Tensor) -> Tensor:
    pictures, height, width = codes.shape
    entries = codebook.new_empty(pictures, codebook.shape[1], height, width)
    launch(
        _lookup_kernel,
        (blocks(codes.numel(), 128),),
        codes_ptr=codes.to(torch.int64).contiguous(),
        codebook_ptr=codebook,
        entries_ptr=entries,
        rows=codes.numel(),
        positions=height * width,
        stride_code=codebook.stride(0),
        stride_width=codebook.stride(1),
        WIDTH=codebook.shape[1],
        BLOCK=128,
        TINY=TINY,
        options={"num_warps": 4},
    )
    return entries


@torch.library.custom_op("janus::lookup", mutates_args=())
def lookup_op(codes: Tensor, codebook: Tensor) -> Tensor:
    _check_codes(codes, codebook)
    runs = _launch_lookup if _chosen(codebook) == "triton" else lookup_reference
    return runs(codes, codebook)


@lookup_op.register_fake
def _(codes: Tensor, codebook: Tensor) -> Tensor:
    _check_codes(codes, codebook)
    pictures, height, width = codes.shape
    return codebook.new_empty(pictures, codebook.shape[1], height, width)


def _lookup_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _lookup_backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
    codes, codebook = ctx.saved_tensors
    by_row = gradient.permute(0, 2, 3, 1).reshape(-1, codebook.shape[1]).float()
    normalized = torch.zeros_like(codebook, dtype=torch.float32).index_add_(0, codes.flatten().long(), by_row)
    length = codebook.float().norm(dim=1, keepdim=True).clamp_min(TINY)
    unit = codebook.float() / length
    along = (normalized * unit).sum(1, keepdim=True)
    return None, ((normalized - unit * along) / length).to(codebook.dtype)


lookup_op.register_autograd(_lookup_backward, setup_context=_lookup_setup)


def lookup(codes: Tensor, codebook: Tensor) -> Tensor:
    """Codes (B, h, w) of any integer dtype -> their entries at unit length, (B, C, h, w), contiguous.

    Codes must lie in [0, K): they are not checked here, which would wait for the GPU. Differentiable in the
    codebook. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    _check_codes(codes, codebook)
    if _chosen(codebook) == "triton":
        return lookup_op(codes, codebook)
    return lookup_reference(codes, codebook)


def every_launch() -> Iterator[Callable[[], object]]:
    """Calls on "meta" tensors that together launch every configuration of these kernels.

    Two widths stand for all: the released models', and the widest, in float32.
    """
    for width, dtype in [*((8, dtype) for dtype in DTYPES), (WIDEST, torch.float32)]:
        codebook = torch.empty(16384, width, dtype=dtype, device="meta")
        for latents in (torch.empty(576, width), torch.empty(16, width, 24, 24), torch.empty(1, width)):
            yield partial(_launch_nearest_code, latents.to("meta", dtype), codebook)
        yield partial(_launch_lookup, torch.empty(16, 24, 24, dtype=torch.long, device="meta"), codebook)
