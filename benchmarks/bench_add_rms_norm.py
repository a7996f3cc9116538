"""The residual addition and the RMSNorm behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from cases import ADD_RMS_NORM, LanguageCase
from janus.kernels.add_rms_norm import add_rms_norm
from measure import Cost
from variants import Prepare, eager_and_compiled, ours

CASES = ADD_RMS_NORM


def cost(case: LanguageCase) -> Cost:
    """x, the residual and two results; per number an addition, a square, its sum, and two products."""
    numbers = case.rows * case.positions * case.language.width
    return Cost((4 * numbers + case.language.width) * case.dtype.itemsize, 5 * numbers, torch.float32)


def inputs(case: LanguageCase, device: torch.device) -> tuple[Tensor, Tensor, float, Tensor]:
    x, residual = torch.randn(
        2, case.rows, case.positions, case.language.width, dtype=case.dtype, device=device
    )
    weight = 1 + 0.1 * torch.randn(case.language.width, dtype=case.dtype, device=device)
    return x, weight, case.language.norm_eps, residual


def norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]:
    """As Llama is usually written."""
    total = x + residual
    wide = total.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype), total


def setup(case: LanguageCase, device: torch.device) -> dict[str, Prepare]:
    return eager_and_compiled(norm) | ours(add_rms_norm, device)
