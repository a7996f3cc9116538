"""Linear layers of 16 bits on a CPU without instructions for them: their products in float32.

There a product with a weight that is not transposed, as the backward pass needs it, runs number by number,
several hundred times slower. A wide copy of a weight lives for one product only.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def widen_linears(model: nn.Module) -> None:
    """Have every linear layer multiply in float32, forward and backward, in place; its weight stays."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            setattr(module, "forward", partial(wide_linear, module))  # noqa: B010


def wide_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """(..., K) -> (..., N) in the dtype of x, rounded once."""
    return _WideLinear.apply(x, layer.weight, layer.bias)


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = None if bias is None else bias.dtype
        wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return wide.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradients[0].float().reshape(-1, len(weight))
        return (
            (gradient @ weight.float()).view_as(x).to(x.dtype) if of_x else None,
            (gradient.t() @ x.float().reshape(-1, weight.shape[1])).to(weight.dtype) if of_weight else None,
            gradient.sum(0).to(ctx.bias) if of_bias else None,
        )
