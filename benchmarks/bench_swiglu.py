"""SwiGLU, on the halves of a merged projection, as the language model has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cases import SWIGLU, LanguageCase
from janus.kernels.swiglu import swiglu
from measure import Cost
from variants import Prepare, eager_and_compiled, ours

CASES = SWIGLU


def cost(case: LanguageCase) -> Cost:
    """Two numbers read for each written; an exponential, a sum, a quotient, a product."""
    numbers = case.rows * case.positions * case.language.mlp_width
    return Cost(3 * numbers * case.dtype.itemsize, 4 * numbers, torch.float32)


def inputs(case: LanguageCase, device: torch.device) -> tuple[Tensor, ...]:
    shape = case.rows, case.positions, 2 * case.language.mlp_width
    return torch.randn(shape, dtype=case.dtype, device=device).chunk(2, dim=-1)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def setup(case: LanguageCase, device: torch.device) -> dict[str, Prepare]:
    return eager_and_compiled(gated) | ours(swiglu, device)
