"""The residual addition and the RMSNorm behind it, and their gradients, in one pass each.

D is the width of a row. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), in the
order in which Llama rounds: normalized in float32, cast back, then scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from janus.kernels import choice
from janus.kernels.launch import DTYPES, as_rows, blocks, kernel, launch, tl

# A program keeps a whole row in registers: its block is the first of these that holds the row, beside it the
# warps. Forward, 8 elements a thread, one 16-byte load in 16 bits, as long as there are threads.
WARPS = {2048: 8, 4096: 16, 16384: 16}
BACKWARD_WARPS = {2048: 8, 4096: 8, 8192: 16}  # more of a row is held at once: one of 16384 would spill
WIDEST = max(WARPS)
PARTIAL_SUMS = 256  # programs of the backward pass, about two for each multiprocessor of the largest chips


def _check(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    if x.ndim == 0 or x.shape[-1] == 0 or not x.is_floating_point():
        raise ValueError(f"x must be (..., D) floats, D at least 1, not {tuple(x.shape)} {x.dtype}")
    for name, tensor, shape in (("weight", weight, x.shape[-1:]), ("residual", residual, x.shape)):
        if tensor is not None and (
            tensor.shape != shape or not tensor.is_floating_point() or tensor.device != x.device
        ):
            raise ValueError(
                f"the {name} must be {tuple(shape)} floats on {x.device}, for x of {tuple(x.shape)}, "
                f"not {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )


def _chosen(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> str:
    """The implementation for these rows."""
    width, unable = x.shape[-1], None
    if width > WIDEST:
        unable = f"it takes rows of {WIDEST} at most, not {width}"
    elif any(tensor is not None and tensor.dtype != x.dtype for tensor in (weight, residual)):
        unable = "it takes tensors of one dtype"  # under autocast they are of two
    return choice.implementation("add_rms_norm", x, unable=unable)


# --- forward ---


def add_rms_norm_reference(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `add_rms_norm`."""
    total = x if residual is None else x + residual
    wide = total.float()
    normalized = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normalized.to(total.dtype), total


@kernel
def _norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    normalized_ptr,
    total_ptr,
    width,
    stride_x,
    stride_residual,
    eps,
    BLOCK: tl.constexpr,
):
    """One row. Without a residual there is no total to store either."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    dtype = normalized_ptr.dtype.element_ty
    total = tl.load(x_ptr + row * stride_x + column, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        total += tl.load(residual_ptr + row * stride_residual + column, mask=mask, other=0.0).to(tl.float32)
        total = total.to(dtype)
        tl.store(total_ptr + row * width + column, total, mask=mask)
        total = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, axis=0) / width + tl.cast(eps, tl.float32))
    normalized = (total * scale).to(dtype).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(normalized_ptr + row * width + column, (normalized * weight).to(dtype), mask=mask)


def _block(width: int, warps: dict[int, int]) -> int:
    return next(block for block in warps if width <= block)


def _launch_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    normalized = x.new_empty(x.shape)
    total = None if residual is None else x.new_empty(x.shape)
    rows = as_rows(x)
    residual_rows = None if residual is None else as_rows(residual)
    block = _block(rows.shape[1], WARPS)
    launch(
        _norm_kernel,
        (rows.shape[0],),
        x_ptr=rows,
        residual_ptr=residual_rows,
        weight_ptr=weight.contiguous(),
        normalized_ptr=normalized,
        total_ptr=total,
        width=rows.shape[1],
        stride_x=rows.stride(0),
        stride_residual=0 if residual_rows is None else residual_rows.stride(0),
        eps=eps,
        BLOCK=block,
        options={"num_warps": WARPS[block]},
    )
    return normalized, total


# Two ops over one kernel: an op may not return its input, which is the total where nothing is added.
@torch.library.custom_op("janus::rms_norm", mutates_args=())
def rms_norm_op(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check(x, weight, None)
    if _chosen(x, weight) == "triton":
        return _launch_norm(x, weight, eps)[0]
    return add_rms_norm_reference(x, weight, eps)[0].contiguous()


@torch.library.custom_op("janus::add_rms_norm", mutates_args=())
def add_rms_norm_op(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check(x, weight, residual)
    if _chosen(x, weight, residual) == "triton":
        normalized, total = _launch_norm(x, weight, eps, residual)
        assert total is not None
        return normalized, total
    normalized, total = add_rms_norm_reference(x, weight, eps, residual)
    return normalized.contiguous(), total.contiguous()


@rms_norm_op.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check(x, weight, None)
    return x.new_empty(x.shape, dtype=torch.promote_types(weight.dtype, x.dtype))


@add_rms_norm_op.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check(x, weight, residual)
    wider = torch.promote_types(x.dtype, residual.dtype)
    dtypes = torch.promote_types(weight.dtype, wider), wider
    return x.new_empty(x.shape, dtype=dtypes[0]), x.new_empty(x.shape, dtype=dtypes[1])


# --- backward ---


def rms_norm_backward_reference(
    gradient: Tensor, total_gradient: Tensor | None, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the total and the weight, from those of what is normalized and of the total itself."""
    wide, scaled = total.float(), gradient.float() * weight.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    normalized = wide * scale
    through = scale * (scaled - normalized * (scaled * normalized).mean(-1, keepdim=True))
    if total_gradient is not None:
        through = through + total_gradient.float()
    weight_gradient = as_rows(gradient.float() * normalized.to(total.dtype).float()).sum(0)
    return through.to(total.dtype), weight_gradient.to(weight.dtype)


@kernel
def _norm_backward_kernel(
    gradient_ptr,
    total_gradient_ptr,
    total_ptr,
    weight_ptr,
    x_gradient_ptr,
    partial_sums_ptr,
    rows,
    width,
    rows_per_program,
    stride_gradient,
    stride_total_gradient,
    stride_total,
    eps,
    BLOCK: tl.constexpr,
):
    """Some rows after each other, and the sum of what they give to the weight's gradient."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    dtype = x_gradient_ptr.dtype.element_ty
    weight_gradient = tl.zeros((BLOCK,), tl.float32)
    first = program * rows_per_program
    for step in range(tl.minimum(rows_per_program, rows - first)):
        row = first + step
        total = tl.load(total_ptr + row * stride_total + column, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(total * total, axis=0) / width + tl.cast(eps, tl.float32))
        normalized = total * scale
        gradient = tl.load(gradient_ptr + row * stride_gradient + column, mask=mask, other=0.0).to(tl.float32)
        weight_gradient += gradient * normalized.to(dtype).to(tl.float32)
        # Read again for every row: to keep it would cost the widest rows more registers than there are.
        scaled = gradient * tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
        along = tl.sum(scaled * normalized, axis=0) / width
        through = scale * (scaled - normalized * along)
        if total_gradient_ptr is not None:
            start = total_gradient_ptr + row * stride_total_gradient
            through += tl.load(start + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(x_gradient_ptr + row * width + column, through.to(dtype), mask=mask)
    tl.store(partial_sums_ptr + program * width + column, weight_gradient, mask=mask)


def _launch_norm_backward(
    gradient: Tensor, total_gradient: Tensor | None, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x_gradient = total.new_empty(total.shape)
    gradients, totals = as_rows(gradient), as_rows(total)
    total_gradients = None if total_gradient is None else as_rows(total_gradient)
    rows, width = totals.shape
    rows_per_program = max(1, blocks(rows, PARTIAL_SUMS))
    programs = blocks(rows, rows_per_program)
    # Summed here and not by atomics, so that the same inputs give the same gradient.
    partial_sums = torch.empty(programs, width, dtype=torch.float32, device=total.device)
    block = _block(width, BACKWARD_WARPS)
    launch(
        _norm_backward_kernel,
        (programs,),
        gradient_ptr=gradients,
        total_gradient_ptr=total_gradients,
        total_ptr=totals,
        weight_ptr=weight.contiguous(),
        x_gradient_ptr=x_gradient,
        partial_sums_ptr=partial_sums,
        rows=rows,
        width=width,
        rows_per_program=rows_per_program,
        stride_gradient=gradients.stride(0),
        stride_total_gradient=0 if total_gradients is None else total_gradients.stride(0),
        stride_total=totals.stride(0),
        eps=eps,
        BLOCK=block,
        options={"num_warps": BACKWARD_WARPS[block]},
    )
    return x_gradient, partial_sums.sum(0).to(weight.dtype)


@torch.library.custom_op("janus::rms_norm_backward", mutates_args=())
def rms_norm_backward_op(
    gradient: Tensor, total_gradient: Tensor | None, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    # Wider rows were normalized by the kernel all the same, so this is no choice of the caller's.
    fits = total.shape[-1] <= max(BACKWARD_WARPS)
    runs = (
        _launch_norm_backward if fits and _chosen(total, weight) == "triton" else rms_norm_backward_reference
    )
    x_gradient, weight_gradient = runs(gradient, total_gradient, total, weight, eps)
    return x_gradient.contiguous(), weight_gradient


@rms_norm_backward_op.register_fake
def _(
    gradient: Tensor, total_gradient: Tensor | None, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _rms_norm_setup(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    return *rms_norm_backward_op(gradient, None, *ctx.saved_tensors, ctx.eps), None


def _add_rms_norm_setup(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor]
) -> None:
    _, _, weight, ctx.eps = inputs
    ctx.save_for_backward(output[1], weight)


def _add_rms_norm_backward(
    ctx: Any, gradient: Tensor, total_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, None]:
    x_gradient, weight_gradient = rms_norm_backward_op(gradient, total_gradient, *ctx.saved_tensors, ctx.eps)
    return x_gradient, x_gradient, weight_gradient, None


rms_norm_op.register_autograd(_rms_norm_backward, setup_context=_rms_norm_setup)
add_rms_norm_op.register_autograd(_add_rms_norm_backward, setup_context=_add_rms_norm_setup)


def add_rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (..., D), a weight (D,) -> RMSNorm(total) and total = x + residual, both (..., D).

    Without a residual the total is x itself. The total is rounded to the dtype; normalized in float32, cast
    back, then scaled. Differentiable in x, residual and weight. Tensors of several dtypes,
    as under autocast, are PyTorch's to promote. Raises ValueError for a weight or residual of another shape
    or device.
    """
    _check(x, weight, residual)
    if _chosen(x, weight, residual) == "torch":
        return add_rms_norm_reference(x, weight, eps, residual)
    if residual is None:
        return rms_norm_op(x, weight, eps), x
    return add_rms_norm_op(x, residual, weight, eps)


def every_launch() -> Iterator[Callable[[], object]]:
    """Calls on "meta" tensors that together launch every configuration of these kernels."""
    for dtype in DTYPES:
        for width in sorted({*WARPS, *BACKWARD_WARPS}):
            rows = torch.empty(4800, width, dtype=dtype, device="meta")
            weight = rows[0]
            for second in (None, rows):
                yield partial(_launch_norm, rows, weight, 1e-6, second)
                if width <= max(BACKWARD_WARPS):
                    yield partial(_launch_norm_backward, rows, second, rows, weight, 1e-6)
