"""A linear layer whose weights are integers of 8 or 4 bits: x W^T, with W made of them on the way.

K is the width of a row of x, N the number of outputs, G the number of groups that K is divided into. Two
formats, alike on every device and in files:

- 8 bits: weight (N, K) int8 and scale (N,); W = weight * scale.
- 4 bits: weight (N, K / 2) uint8 and scale (N, G, 2); W = (q - 8) * scale[..., 0] + scale[..., 1]. The q,
  from 0 to 15, are two to a byte: of a group, 64 columns or 32, the low halves of its bytes are the first
  half of the columns, and the high halves the second, so that either meets neighbors in x.

That is also how PyTorch's own CPU kernels read numbers (aten's `_weight_int8pack_mm`, and
`_weight_int4pack_mm_for_cpu` but for the order of the bytes; see `pack`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from janus import cpu
from janus.kernels import choice
from janus.kernels.launch import DTYPES, blocks, kernel, launch, tl

SCALE = torch.bfloat16  # the dtype of scales, for which the integers are chosen
GROUPS = (64, 32)  # columns that share a scale, in 4 bits
CHUNK = 1 << 22  # weights that are made floats at once: 8 MB in 16 bits, which a CPU multiplies while warm
PACKED = 1 << 20  # weights that are packed at once: 4 MB, since each becomes an int32 on the way
LARGE_CHUNK = 1 << 26  # and on a GPU, where every chunk is a few launches
# From so many rows on, by the dtypes of weight and x, aten's kernels, which make floats of a weight anew for
# every four rows, are slower on a CPU than weights made floats once and a matrix product. They have vector
# instructions for bfloat16 alone. Measured on an AMD EPYC, at 4096 x 2048.
MANY_ROWS = {
    (torch.int8, torch.bfloat16): 12,
    (torch.uint8, torch.bfloat16): 76,
    (torch.int8, torch.float32): 2,
    (torch.uint8, torch.float32): 2,
}


def bits_of(weight: Tensor) -> int:
    """8 or 4, by the weight's dtype."""
    return 8 if weight.dtype == torch.int8 else 4


def _check(x: Tensor, weight: Tensor, scale: Tensor) -> None:
    if weight.ndim != 2 or weight.dtype not in (torch.int8, torch.uint8):
        raise ValueError(
            f"the weight must be (N, K) int8 or (N, K / 2) uint8, not {tuple(weight.shape)} {weight.dtype}"
        )
    outputs = weight.shape[0]
    inputs = weight.shape[1] * (8 // bits_of(weight))
    if bits_of(weight) == 8:
        shapes: list[tuple[int, ...]] = [(outputs,)]
    else:
        shapes = [(outputs, inputs // group, 2) for group in GROUPS if inputs % group == 0]
    if scale.shape not in shapes or scale.dtype != SCALE:
        wanted = " or ".join(map(str, shapes)) or "of groups of 64 or 32 columns"
        raise ValueError(
            f"the scale of a weight {tuple(weight.shape)} {weight.dtype} must be {wanted} {SCALE}, not "
            f"{tuple(scale.shape)} {scale.dtype}"
        )
    if x.ndim == 0 or x.shape[-1] != inputs or not x.is_floating_point():
        raise ValueError(f"x must be (..., {inputs}) floats, not {tuple(x.shape)} {x.dtype}")
    for name, tensor in (("the weight", weight), ("the scale", scale)):
        if tensor.device != x.device:
            raise ValueError(f"x is on {x.device}, and {name} on {tensor.device}")


# --- the plain way: floats again, and a matrix product ---


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights as floats: (N, K)."""
    if bits_of(weight) == 8:
        return weight.to(dtype) * scale.to(dtype)[:, None]
    return _scaled(_integers(weight, scale).to(dtype), scale.to(dtype)[:, :, None]).flatten(1)


def _scaled(q: Tensor, scale: Tensor) -> Tensor:
    """Floats of 0 to 15, in place, with scales (..., 2) beside them; rounded once."""
    step, zero = (part.contiguous() for part in scale.unbind(-1))  # of strided ones each weight costs a load
    return torch.addcmul(zero, q.sub_(8), step, out=q)


def _integers(weight: Tensor, scale: Tensor) -> Tensor:
    """The q of a 4-bit weight: (N, G, columns of a group) uint8."""
    pairs = weight.unflatten(1, (scale.shape[1], -1))
    return torch.cat((pairs & 15, pairs >> 4), dim=2)


def pairs_of(q: Tensor) -> Tensor:
    """(N, G, columns of a group) of 0 to 15 -> (N, K / 2): two to a byte."""
    low, high = q.chunk(2, dim=2)
    return (low | high << 4).flatten(1)


def _chunks(weight: Tensor, size: int | None = None) -> list[slice]:
    """Runs of output rows of `size` weights; without it, of those that are made floats at once."""
    size = size or (CHUNK if weight.device.type == "cpu" else LARGE_CHUNK)
    rows = max(64, size // (weight.shape[1] * (8 // bits_of(weight))) // 64 * 64)
    return [slice(first, first + rows) for first in range(0, weight.shape[0], rows)]


def quantized_linear_reference(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """As `quantized_linear`. A few outputs at a time, so that the weights are never floats all at once."""
    if cpu.widens(x.device, x.dtype):
        return quantized_linear_reference(x.float(), weight, scale).to(x.dtype)
    if bits_of(weight) == 8 and x.dtype != torch.float16:  # the sum of unscaled products leaves its range
        parts = [x @ weight[chunk].to(x.dtype).t() for chunk in _chunks(weight)]
        product = _joined(parts) * scale.to(x.dtype)
    else:
        product = _joined(
            [x @ dequantize(weight[chunk], scale[chunk], x.dtype).t() for chunk in _chunks(weight)]
        )
    return product


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


# --- on a CPU: aten's kernels, while rows are few ---


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _aten_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether aten's kernels are the faster; they have no gradient."""
    few = _rows(x) < MANY_ROWS.get((weight.dtype, x.dtype), 0)
    return few and x.device.type == "cpu" and not (x.requires_grad and torch.is_grad_enabled())


def _aten_int8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor | None:
    """The product by aten's kernel, or None where that cannot or would be slower.

    Its loops assume whole vectors: of other sizes it reads beyond its tensors.
    """
    outputs, inputs = weight.shape
    if not _aten_serves(x, weight) or not weight.is_contiguous():
        return None
    if outputs % 16 or inputs % 32 or not inputs or not outputs:
        return None
    product = torch._weight_int8pack_mm(x.reshape(-1, inputs).contiguous(), weight, scale.to(x.dtype))
    return product.view(*x.shape[:-1], outputs)


@cache
def _nibbles() -> tuple[int, bool] | None:
    """How aten orders 4-bit weights on this CPU: it looks at the vectors that the CPU has.

    -> rows whose columns lie together, and whether a byte holds two neighboring rows, or else rows that are
    half of those apart. None where it is neither: then nothing is packed.
    """
    q = torch.randint(0, 16, (128, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
    except (RuntimeError, AttributeError):
        return None
    for order in ((64, False), (32, False), (32, True)):
        if torch.equal(_columns(packed, order), q.t()):
            return order
    return None


def _columns(packed: Tensor, order: tuple[int, bool]) -> Tensor:
    """The packed weights' q, column by column: (N, K / 2) -> (K, N) uint8."""
    rows, neighbors = order
    inputs = packed.shape[1] * 2
    packed = packed.view(-1, inputs, rows // 2).transpose(0, 1)
    halves = torch.stack((packed & 15, packed >> 4), dim=-1 if neighbors else -2)
    return halves.reshape(inputs, -1)


def packs(weight: Tensor) -> bool:
    """Whether `pack` can take a 4-bit weight: on a CPU whose order is known, and in whole blocks of rows."""
    fits = weight.dtype == torch.uint8 and weight.shape[0] % 64 == 0 and weight.numel() > 0
    return fits and weight.device.type == "cpu" and _nibbles() is not None


def pack(weight: Tensor, scale: Tensor, *, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """A 4-bit weight and its scale as aten's kernel for the CPU reads them, in as many bytes.

    The shapes stay: the weight's bytes are in another order, and the scale's lie group by group. The weight's
    own memory may take the new order.
    """
    packed = weight if in_place and weight.is_contiguous() else torch.empty(weight.shape, dtype=weight.dtype)
    for chunk in _chunks(weight, PACKED):
        q = _integers(weight[chunk], scale).flatten(1).int()
        packed[chunk] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
    return packed, scale.transpose(0, 1).contiguous().transpose(0, 1)


def unpack(packed: Tensor, scale: Tensor, *, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """The plain format again, of what `pack` made."""
    order = _nibbles()
    assert order is not None  # or nothing would have been packed
    weight = packed if in_place else torch.empty_like(packed)
    for chunk in _chunks(packed, PACKED):
        q = _columns(packed[chunk], order).t().unflatten(1, (scale.shape[1], -1))
        weight[chunk] = pairs_of(q)
    return weight, scale.contiguous()


def packed_linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """As `quantized_linear`, of what `pack` made."""
    if torch.compiler.is_compiling():  # the order of the bytes is found by looking at values
        return packed_linear_op(x, packed, scale)
    few = _aten_serves(x, packed)
    if not few and (x.dtype == torch.float16 or cpu.widens(x.device, x.dtype)):
        return packed_linear(x.float(), packed, scale).to(x.dtype)
    outputs, inputs = packed.shape[0], packed.shape[1] * 2
    rows = x.reshape(-1, inputs)
    groups = scale.transpose(0, 1).to(x.dtype)  # (G, N, 2)
    if few:
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.contiguous(), packed, inputs // len(groups), groups.contiguous()
        )
    else:
        order = _nibbles()
        assert order is not None
        parts = []
        for chunk in _chunks(packed):
            q = _columns(packed[chunk], order).to(x.dtype).unflatten(0, (len(groups), -1))
            parts.append(rows @ _scaled(q, groups[:, None, chunk]).flatten(0, 1))
        product = _joined(parts)
    return product.view(*x.shape[:-1], outputs)


@torch.library.custom_op("janus::packed_linear", mutates_args=())
def packed_linear_op(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    return packed_linear(x, packed, scale)


@packed_linear_op.register_fake
def _(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


@torch.library.custom_op("janus::packed_linear_backward", mutates_args=())
def _packed_linear_backward_op(gradient: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """The gradient (..., N) of a product times the weight, (..., K)."""
    return gradient @ dequantize(*unpack(packed, scale), gradient.dtype)


@_packed_linear_backward_op.register_fake
def _(gradient: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    return gradient.new_empty(*gradient.shape[:-1], 2 * packed.shape[1])


def _packed_setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _packed_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _packed_linear_backward_op(gradient, *ctx.saved_tensors), None, None


packed_linear_op.register_autograd(_packed_backward, setup_context=_packed_setup)


# --- on a GPU: weights are read once, as integers, while rows are few ---


_kernel = partial(kernel, sizes=("rows", "outputs"))


@_kernel
def _int8_kernel(
    x_ptr,
    weight_ptr,
    scale_ptr,
    product_ptr,
    rows,
    outputs,
    inputs,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    of_row = (row.to(tl.int64) * inputs)[:, None]
    of_output = (output.to(tl.int64) * inputs)[None, :]
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, inputs, INPUTS):
        column = start + tl.arange(0, INPUTS)
        within = column < inputs
        x = tl.load(x_ptr + of_row + column[None, :], mask=(row < rows)[:, None] & within[None, :], other=0.0)
        weight = tl.load(
            weight_ptr + of_output + column[:, None],
            mask=within[:, None] & (output < outputs)[None, :],
            other=0,
        )
        total = tl.dot(x, weight.to(x.dtype), total, input_precision="ieee")
    total *= tl.load(scale_ptr + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
    target = product_ptr + row.to(tl.int64)[:, None] * outputs + output[None, :]
    mask = (row < rows)[:, None] & (output < outputs)[None, :]
    tl.store(target, total.to(product_ptr.dtype.element_ty), mask=mask)


@_kernel
def _int4_kernel(
    x_ptr,
    weight_ptr,
    scale_ptr,
    product_ptr,
    rows,
    outputs,
    inputs,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """A product for each of several groups, (groups, rows, outputs), scaled and added up.

    The q - 8 are exact in any dtype: they are multiplied as they are. What is added to each weight of a group
    meets the sum of the group's x.
    """
    HALF: tl.constexpr = GROUP // 2
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    byte = tl.arange(0, HALF)
    groups = inputs // GROUP
    of_row = x_ptr + (row.to(tl.int64) * inputs)[None, :, None] + byte[None, None, :]
    of_output = weight_ptr + (output.to(tl.int64) * (inputs // 2))[None, None, :] + byte[None, :, None]
    of_scale = scale_ptr + (output.to(tl.int64) * (groups * 2))[None, :]
    total = tl.zeros((GROUPS, ROWS, OUTPUTS), tl.float32)
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)
        real_x = (group < groups)[:, None, None] & (row < rows)[None, :, None]
        real_scale = (group < groups)[:, None] & (output < outputs)[None, :]
        first_half = tl.load(of_row + group[:, None, None] * GROUP, mask=real_x, other=0.0)
        second_half = tl.load(of_row + group[:, None, None] * GROUP + HALF, mask=real_x, other=0.0)
        pair = tl.load(of_output + group[:, None, None] * HALF, mask=real_scale[:, None, :], other=0)
        scale = tl.load(of_scale + group[:, None] * 2, mask=real_scale, other=0.0).to(tl.float32)
        zero = tl.load(of_scale + group[:, None] * 2 + 1, mask=real_scale, other=0.0).to(tl.float32)
        low = ((pair & 15).to(tl.int8) - 8).to(first_half.dtype)
        high = ((pair >> 4).to(tl.int8) - 8).to(first_half.dtype)
        part = tl.dot(first_half, low, input_precision="ieee")
        part = tl.dot(second_half, high, part, input_precision="ieee")
        sums = tl.sum(first_half.to(tl.float32) + second_half.to(tl.float32), axis=2)
        total += part * scale[:, None, :] + sums[:, :, None] * zero[:, None, :]
    target = product_ptr + row.to(tl.int64)[:, None] * outputs + output[None, :]
    mask = (row < rows)[:, None] & (output < outputs)[None, :]
    tl.store(target, tl.sum(total, axis=0).to(product_ptr.dtype.element_ty), mask=mask)


# A program's rows, outputs and columns at once. Small: narrow layers, too, must fill the chip. Programs of
# other rows and the same outputs run side by side, so their weights come from memory once.
ROWS, OUTPUTS, INPUTS = 16, 16, 256
OPTIONS = {"num_warps": 2, "num_stages": 4}
# float32, which has no matrix units, takes more registers and shared memory.
WIDE_INPUTS, WIDE_OPTIONS = 64, {"num_warps": 4, "num_stages": 2}


def _launch_quantized_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    inputs, outputs = x.shape[-1], weight.shape[0]
    product = x.new_empty(*x.shape[:-1], outputs)
    if not product.numel():
        return product
    rows = _rows(product)
    wide = x.dtype == torch.float32
    columns = WIDE_INPUTS if wide else INPUTS
    if bits_of(weight) == 8:
        function: Any = _int8_kernel
        blocking: dict[str, Any] = {"INPUTS": columns}
    else:
        group = inputs // scale.shape[1]
        function, blocking = _int4_kernel, {"GROUP": group, "GROUPS": columns // group}
    launch(
        function,
        (blocks(rows, ROWS), blocks(outputs, OUTPUTS)),
        x_ptr=x.contiguous(),
        weight_ptr=weight.contiguous(),
        scale_ptr=scale.contiguous(),
        product_ptr=product,
        rows=rows,
        outputs=outputs,
        inputs=inputs,
        ROWS=ROWS,
        OUTPUTS=OUTPUTS,
        **blocking,
        options=WIDE_OPTIONS if wide else OPTIONS,
    )
    return product


# --- the op ---


def _chosen(x: Tensor, weight: Tensor) -> str:
    unable = None if x.shape[-1] % 16 == 0 else f"it takes rows of a multiple of 16, not of {x.shape[-1]}"
    return choice.implementation("quantized_linear", x, unable=unable, rows=_rows(x))


def _without_triton(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    product = _aten_int8(x, weight, scale) if weight.dtype == torch.int8 else None
    return quantized_linear_reference(x, weight, scale) if product is None else product


@torch.library.custom_op("janus::quantized_linear", mutates_args=())
def quantized_linear_op(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    _check(x, weight, scale)
    if _chosen(x, weight) == "triton":
        return _launch_quantized_linear(x, weight, scale)
    return _without_triton(x, weight, scale)


@quantized_linear_op.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    _check(x, weight, scale)
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x W^T: x (..., K), a weight of 8 or 4 bits and its scale -> (..., N).

    Computed in x's dtype with sums in float32. With few rows the weights stay integers until they are
    multiplied; with many they are made floats, some outputs at a time. Differentiable in x, then by the plain
    way. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    _check(x, weight, scale)
    if x.requires_grad and torch.is_grad_enabled():
        return quantized_linear_reference(x, weight, scale)
    # Inductor has a lowering of its own for aten's kernel, which fails for x that it has computed itself.
    if _chosen(x, weight) == "triton" or torch.compiler.is_compiling():
        return quantized_linear_op(x, weight, scale)
    return _without_triton(x, weight, scale)


def every_launch() -> Iterator[Callable[[], object]]:
    """Calls on "meta" tensors that together launch every configuration of these kernels."""
    for dtype in DTYPES:
        x = torch.empty(2, 2048, dtype=dtype, device="meta")
        weight = torch.empty(512, 2048, dtype=torch.int8, device="meta")
        yield partial(_launch_quantized_linear, x, weight, torch.empty(512, dtype=SCALE, device="meta"))
        weight = torch.empty(512, 1024, dtype=torch.uint8, device="meta")
        for group in GROUPS:
            scale = torch.empty(512, 2048 // group, 2, dtype=SCALE, device="meta")
            yield partial(_launch_quantized_linear, x, weight, scale)
