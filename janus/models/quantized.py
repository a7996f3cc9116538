"""The language model's weights as integers of 8 or 4 bits: less memory, and less to read at every step.

Only weights are: activations stay floats. N outputs, K inputs, G groups of K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from janus.kernels.quantized_linear import (
    GROUPS,
    SCALE,
    pack,
    packed_linear,
    packs,
    pairs_of,
    quantized_linear,
    unpack,
)
from janus.models.janus import Janus
from janus.models.llama import JoinedLinear
from janus.models.meta import on_meta
from janus.models.multimodal import MultimodalModel

Model = TypeVar("Model", bound=MultimodalModel)
Quantization = Literal["int8", "int4"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

CHUNK = 1 << 18  # weights that are quantized at once, in float32: a few copies of 1 MB, which caches hold
ROUNDS = 5  # of choosing integers for a scale and a scale for the integers; see `quantize_weight`
TINY = 2.0**-60  # the least scale: a row of zeros needs one too


def check_quantization(quantize: Any) -> Quantization:
    """The argument itself, if it names a quantization; else ValueError."""
    if quantize not in QUANTIZATIONS:
        raise ValueError(f"quantize {quantize!r} is unknown: name one of {', '.join(QUANTIZATIONS)}")
    return quantize


def group_size(inputs: int) -> int | None:
    """How many columns of a row of 4-bit weights share a scale; None where a row has no such groups."""
    return next((group for group in GROUPS if inputs % group == 0), None)


# --- choosing the integers ---


def quantize_weight(weight: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor]:
    """A weight (N, K) of floats -> its integers and scale, as `janus.kernels.quantized_linear` has them.

    8 bits are symmetric, a scale per row from its largest magnitude: a smaller one, which would clip, only
    adds to the error. 4 bits start from the range of each group of 64 columns (or 32). Then the scale and
    offset that suit the integers best, by least squares, and the integers that suit those best, take turns,
    as in Lloyd's method ("Least squares quantization in PCM", 1982): for normal weights a tenth less squared
    error. Scales are rounded before the integers are chosen for them, so their rounding costs nothing.
    """
    outputs, inputs = weight.shape
    if quantization == "int8":
        integers = torch.empty(outputs, inputs, dtype=torch.int8, device=weight.device)
        scale = torch.empty(outputs, dtype=SCALE, device=weight.device)
        choose: Callable[[Tensor], tuple[Tensor, Tensor]] = _choose_int8
    else:
        group = group_size(inputs)
        if group is None:
            raise ValueError(f"4 bits need rows of a multiple of {GROUPS[-1]} weights, not of {inputs}")
        integers = torch.empty(outputs, inputs // 2, dtype=torch.uint8, device=weight.device)
        scale = torch.empty(outputs, inputs // group, 2, dtype=SCALE, device=weight.device)
        choose = _choose_int4
        weight = weight.unflatten(1, (-1, group))
    rows = max(1, (CHUNK if weight.device.type == "cpu" else 64 * CHUNK) // max(1, inputs))
    for first in range(0, outputs, rows):
        chunk = slice(first, first + rows)
        integers[chunk], scale[chunk] = choose(weight[chunk].float())
    return integers, scale


def _choose_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = (weight.abs().amax(dim=1) / 127).clamp_min_(TINY).to(SCALE)
    return (weight / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def _choose_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of groups (N, G, columns)."""
    low, high = weight.amin(dim=2), weight.amax(dim=2)
    step = (high - low) / 15
    zero = low + 8 * step
    for _ in range(ROUNDS):
        step, zero = _least_squares(weight, _nearest(weight, *_rounded(step, zero)), step, zero)
    step, zero = _rounded(step, zero)
    q = (_nearest(weight, step, zero) + 8).to(torch.uint8)
    return pairs_of(q), torch.stack((step, zero), dim=2).to(SCALE)


def _rounded(step: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    return step.clamp_min(TINY).to(SCALE).float(), zero.to(SCALE).float()


def _nearest(weight: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """The integers, from -8 to 7, that come nearest to the weights."""
    return (weight - zero[..., None]).mul_(1 / step[..., None]).round_().clamp_(-8, 7)


def _least_squares(weight: Tensor, q: Tensor, step: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """The straight line through integers and weights; as it was where the integers are all one."""
    mean_q, mean_weight = q.mean(dim=2), weight.mean(dim=2)
    variance = torch.linalg.vecdot(q, q) / q.shape[2] - mean_q**2
    covariance = torch.linalg.vecdot(q, weight) / q.shape[2] - mean_q * mean_weight
    defined = variance > 1e-3  # two different integers among 64 make 0.015
    step = torch.where(defined, covariance / variance.clamp_min(1e-3), step)
    return step, torch.where(defined, mean_weight - step * mean_q, zero)


# --- the module ---


class QuantizedLinear(nn.Module):
    """In place of an `nn.Linear`, or with `sizes` of a `JoinedLinear`.

    `weight` and `weight_scale` are buffers: they have no gradient, so such a model can be used but not
    trained. In 4 bits on a CPU they are packed, that is in the order that the CPU's kernel reads, and no
    second copy is kept; `state_dict` holds the plain format all the same.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        quantization: Quantization,
        *,
        bias: bool = False,
        sizes: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.quantization = quantization
        self.sizes = sizes
        self.packed = False
        if quantization == "int8":
            weight = torch.zeros(out_features, in_features, dtype=torch.int8)
            scale = torch.zeros(out_features, dtype=SCALE)
        else:
            group = group_size(in_features)
            if group is None:
                raise ValueError(f"4 bits need rows of a multiple of {GROUPS[-1]} weights, not {in_features}")
            weight = torch.zeros(out_features, in_features // 2, dtype=torch.uint8)
            scale = torch.zeros(out_features, in_features // group, 2, dtype=SCALE)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)

    @classmethod
    def like(cls, linear: nn.Linear, quantization: Quantization) -> QuantizedLinear:
        """Of a linear layer's shape, on the meta device: its weights are still to be set."""
        with on_meta():
            return cls(
                linear.in_features,
                linear.out_features,
                quantization,
                bias=linear.bias is not None,
                sizes=linear.sizes if isinstance(linear, JoinedLinear) else None,
            )

    def set(self, weight: Tensor, scale: Tensor) -> None:
        """Take integers and scale in the plain format, for good, and pack them where that serves."""
        self.weight, self.weight_scale, self.packed = weight, scale, False
        self.pack()

    def pack(self) -> None:
        """Bring the weights into the order that this device's kernel reads, if it has one."""
        if not self.packed and packs(self.weight) and not self.weight_scale.is_meta:
            self.weight, self.weight_scale = pack(self.weight, self.weight_scale, in_place=True)
            self.packed = True

    def unpack(self) -> None:
        """Bring the weights into the plain format."""
        if self.packed:
            self.weight, self.weight_scale = unpack(self.weight, self.weight_scale, in_place=True)
            self.packed = False

    def forward(self, x: Tensor) -> Tensor:
        linear = packed_linear if self.packed else quantized_linear
        product = linear(x, self.weight, self.weight_scale)
        return product if self.bias is None else product + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.quantization}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        # The scale keeps its dtype, whichever the model's becomes: the integers were chosen for it.
        self.unpack()
        super()._apply(lambda t: fn(t.view(torch.int16)).view(SCALE) if t is self.weight_scale else fn(t))
        self.pack()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed:
            weight, scale = unpack(self.weight, self.weight_scale)
            destination[prefix + "weight"], destination[prefix + "weight_scale"] = weight, scale

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*arguments)
        self.pack()


# --- the model ---


def targets(model: MultimodalModel, quantization: Quantization) -> list[str]:
    """The names of the linear layers that are quantized.

    Those of the language model's layers, its head unless that is the word table itself, and the image head
    if there is one. In 4 bits those are left out whose rows do not divide into groups.
    """
    names = [
        f"language.layers.{layer}.{part}"
        for layer in range(model.config.language.layers)
        for part in ("attention.qkv", "attention.o_proj", "mlp.gate_up", "mlp.down_proj")
    ]
    names += [] if model.config.language.tied_head else ["language.head"]
    names += ["image_head.up", "image_head.out"] if isinstance(model, Janus) else []
    widths: dict[str, Any] = {name: model.get_submodule(name).in_features for name in names}
    return [name for name in names if quantization == "int8" or group_size(widths[name]) is not None]


def make_quantized(model: MultimodalModel, quantization: Quantization) -> list[str]:
    """Put empty quantized layers, on the meta device, in place of those that will be; -> their names."""
    names = targets(model, quantization)
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, QuantizedLinear.like(linear, quantization))
    model.config = replace(model.config, quantization=quantization)
    return names


@torch.no_grad()
def quantize(model: Model, quantization: Quantization) -> Model:
    """Quantize a model in place, a layer at a time; -> the model.

    ValueError for a quantization that is none, and for a model that is quantized already.
    """
    check_quantization(quantization)
    if model.config.quantization is not None:
        raise ValueError(f"this model is quantized to {model.config.quantization} already")
    for name in targets(model, quantization):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layer = QuantizedLinear.like(linear, quantization)
        layer.set(*quantize_weight(linear.weight, quantization))
        layer.bias = linear.bias
        model.set_submodule(name, layer.train(linear.training))
    model.config = replace(model.config, quantization=quantization)
    return model


@contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """Within it all weights are in the plain format, and no second copy of them is held."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear) and module.packed]
    try:
        for layer in layers:
            layer.unpack()
        yield
    finally:
        for layer in layers:
            layer.pack()
