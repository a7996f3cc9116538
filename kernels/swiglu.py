"""SwiGLU: silu(gate) * up, and its gradients, in one pass each.

F is the width of a row. Source: Shazeer, "GLU Variants Improve Transformer" (2020), and torch's silu, whose
formula x / (1 + exp(-x)) in float32 and whose rounding to the dtype before the product are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from janus.kernels import choice
from janus.kernels.launch import DTYPES, as_rows, blocks, kernel, launch, tl


def _check(gate: Tensor, up: Tensor) -> None:
    if gate.ndim == 0 or not gate.is_floating_point():
        raise ValueError(f"the gate must be (..., F) floats, not {tuple(gate.shape)} {gate.dtype}")
    if up.shape != gate.shape or up.dtype != gate.dtype or up.device != gate.device:
        raise ValueError(
            f"up must be as the gate, {tuple(gate.shape)} {gate.dtype} on {gate.device}, "
            f"not {tuple(up.shape)} {up.dtype} on {up.device}"
        )


# --- forward ---


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """As `swiglu`."""
    return F.silu(gate) * up


@kernel
def _swiglu_kernel(
    gate_ptr,
    up_ptr,
    product_ptr,
    width,
    stride_gate,
    stride_up,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    gate = tl.load(gate_ptr + row * stride_gate + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_up + column, mask=mask, other=0.0).to(tl.float32)
    silu = tl.div_rn(gate, 1.0 + tl.exp(-gate))
    silu = silu.to(product_ptr.dtype.element_ty).to(tl.float32)  # as eager PyTorch rounds between the two
    product = (silu * up).to(product_ptr.dtype.element_ty)
    tl.store(product_ptr + row * width + column, product, mask=mask)


# Eight elements a thread: in 16 bits one load of the widest kind.
BLOCK = 1024
OPTIONS = {"num_warps": 4}


def _launch_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    product = gate.new_empty(gate.shape)
    gates, ups = as_rows(gate), as_rows(up)
    rows, width = gates.shape
    launch(
        _swiglu_kernel,
        (rows, blocks(width, BLOCK)),
        gate_ptr=gates,
        up_ptr=ups,
        product_ptr=product,
        width=width,
        stride_gate=gates.stride(0),
        stride_up=ups.stride(0),
        BLOCK=BLOCK,
        options=OPTIONS,
    )
    return product


@torch.library.custom_op("janus::swiglu", mutates_args=())
def swiglu_op(gate: Tensor, up: Tensor) -> Tensor:
    _check(gate, up)
    if choice.implementation("swiglu", gate) == "triton":
        return _launch_swiglu(gate, up)
    return swiglu_reference(gate, up).contiguous()


@swiglu_op.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    _check(gate, up)
    return gate.new_empty(gate.shape)


# --- backward ---


def swiglu_backward_reference(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, from that of the product; rounded once."""
    wide, sigmoid = gate.float(), gate.float().sigmoid()
    slope = sigmoid * (1 + wide * (1 - sigmoid))
    return (gradient.float() * up.float() * slope).to(gate.dtype), (gradient * wide * sigmoid).to(gate.dtype)


@kernel
def _swiglu_backward_kernel(
    gradient_ptr,
    gate_ptr,
    up_ptr,
    gate_gradient_ptr,
    up_gradient_ptr,
    width,
    stride_gradient,
    stride_gate,
    stride_up,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    gradient = tl.load(gradient_ptr + row * stride_gradient + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * stride_gate + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_up + column, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.div_rn(1.0, 1.0 + tl.exp(-gate))
    gate_gradient = gradient * up * (sigmoid * (1.0 + gate * (1.0 - sigmoid)))
    up_gradient = gradient * gate * sigmoid
    target = row * width + column
    tl.store(gate_gradient_ptr + target, gate_gradient.to(gate_gradient_ptr.dtype.element_ty), mask=mask)
    tl.store(up_gradient_ptr + target, up_gradient.to(up_gradient_ptr.dtype.element_ty), mask=mask)


def _launch_swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    gate_gradient, up_gradient = gate.new_empty(gate.shape), gate.new_empty(gate.shape)
    gradients, gates, ups = as_rows(gradient), as_rows(gate), as_rows(up)
    rows, width = gates.shape
    launch(
        _swiglu_backward_kernel,
        (rows, blocks(width, BLOCK)),
        gradient_ptr=gradients,
        gate_ptr=gates,
        up_ptr=ups,
        gate_gradient_ptr=gate_gradient,
        up_gradient_ptr=up_gradient,
        width=width,
        stride_gradient=gradients.stride(0),
        stride_gate=gates.stride(0),
        stride_up=ups.stride(0),
        BLOCK=BLOCK,
        options=OPTIONS,
    )
    return gate_gradient, up_gradient


@torch.library.custom_op("janus::swiglu_backward", mutates_args=())
def swiglu_backward_op(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    if choice.implementation("swiglu", gate) == "triton":
        return _launch_swiglu_backward(gradient, gate, up)
    gate_gradient, up_gradient = swiglu_backward_reference(gradient, gate, up)
    return gate_gradient.contiguous(), up_gradient.contiguous()


@swiglu_backward_op.register_fake
def _(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return swiglu_backward_op(gradient, *ctx.saved_tensors)


swiglu_op.register_autograd(_backward, setup_context=_setup)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up: both (..., F) of one dtype -> (..., F). Differentiable in both.

    Read where they lie if a row's elements are neighbors: the halves of a merged projection are not copied.
    Raises ValueError for shapes, dtypes or devices that differ.
    """
    _check(gate, up)
    if choice.implementation("swiglu", gate) == "triton":
        return swiglu_op(gate, up)
    return swiglu_reference(gate, up)


def every_launch() -> Iterator[Callable[[], object]]:
    """Calls on "meta" tensors that together launch every configuration of these kernels."""
    for dtype in DTYPES:
        gate, up = torch.empty(2, 2 * 5632, dtype=dtype, device="meta").chunk(2, dim=-1)
        yield partial(_launch_swiglu, gate, up)
        yield partial(_launch_swiglu_backward, gate, gate, up)
