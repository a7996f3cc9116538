"""A linear layer at the few rows of a step: plain, packed, and with weights of 8 and 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from cases import LINEAR, LinearCase
from janus.models.packed import PackedLinear, pack
from janus.models.quantized import QUANTIZATIONS, Quantization, QuantizedLinear, quantize_weight
from measure import Cost
from timer import Call
from variants import Prepare, plain

CASES = LINEAR


def cost(case: LinearCase) -> Cost:
    """Weights, inputs and outputs, each once."""
    return cost_of(case, "janus")


def cost_of(case: LinearCase, name: str) -> Cost:
    """With the weights in as many bits as the implementation keeps them in."""
    size = models.QUANTIZED.get(name, case.dtype.itemsize)
    weights = case.outputs * case.inputs
    moved = case.rows * (case.outputs + case.inputs) * case.dtype.itemsize
    return Cost(round(weights * size) + moved, 2 * case.rows * weights, case.dtype)


def inputs(case: LinearCase, device: torch.device) -> tuple[Tensor, ...]:
    weight = torch.randn(case.outputs, case.inputs, device=device) * case.inputs**-0.5
    x = torch.randn(case.rows, case.inputs, device=device)
    return x.to(case.dtype), weight.to(case.dtype)


def layer(weight: Tensor) -> nn.Linear:
    outputs, width = weight.shape
    linear = nn.Linear(width, outputs, bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def packed(x: Tensor, weight: Tensor) -> Call:
    linear, order = layer(weight), pack(weight)
    made = linear if order is None else PackedLinear(linear, order)
    return lambda: made(x)


def quantized(quantization: Quantization) -> Prepare:
    def prepare(x: Tensor, weight: Tensor) -> Call:
        made = QuantizedLinear.like(layer(weight), quantization)
        made.set(*quantize_weight(weight, quantization))
        return lambda: made(x)

    return prepare


def setup(case: LinearCase, device: torch.device) -> dict[str, Callable[..., Call]]:
    fewer: dict[str, Prepare] = {f"janus-{name}": quantized(name) for name in QUANTIZATIONS}
    return {"eager": plain(F.linear), "janus": packed} | (fewer if case.dtype is torch.bfloat16 else {})


def problem(case: LinearCase, inputs: Sequence[Any], name: str, result: Any, expected: Any) -> str | None:
    """Weights of fewer bits may differ as `models.FEWER_BITS` says."""
    return models.problem(case, name, result, expected)
