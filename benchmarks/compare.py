"""Whether an implementation computes what another one does. What is wrong is not timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Largest difference over largest magnitude. Attention over 606 keys in bfloat16 rounds by up to 1e-2, in
# float16 by 1e-3; float32 sums differ by 1e-5 between orders. A missing scale, key or row is off by 1e-1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
NOISE = 1e-4  # relative: what float32 rounding does to a softmax divided by noise


def tensors(result: Any) -> list[Tensor]:
    """A result is a tensor, or several."""
    return [result] if isinstance(result, Tensor) else list(result)


def problem(result: Any, expected: Any, dtype: torch.dtype, tolerance: float | None = None) -> str | None:
    """How a result differs from the expected one beyond `dtype`'s rounding, or None. Integers are exact.

    `tolerance` takes the place of what the dtype is allowed.
    """
    allowed = TOLERANCE[dtype] if tolerance is None else tolerance
    results, expectations = tensors(result), tensors(expected)
    if len(results) != len(expectations):
        return f"{len(results)} tensors instead of {len(expectations)}"
    for number, (ours, theirs) in enumerate(zip(results, expectations, strict=True), 1):
        where = f" in tensor {number}" if len(results) > 1 else ""
        if ours.shape != theirs.shape:
            return f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}{where}"
        if not theirs.is_floating_point():
            different = int((ours != theirs).sum())
            if different:
                return f"{different} of {theirs.numel()} numbers differ{where}"
            continue
        magnitude = theirs.float().abs().max()
        error = ((ours.float() - theirs.float()).abs().max() / magnitude.clamp_min(1e-30)).item()
        if not error <= allowed:  # NaN is wrong as well
            return f"off by {error:.1e} of the largest magnitude{where}, {allowed:.0e} allowed"
    return None


def near_tie(chosen: Tensor, best: Tensor, score: Tensor, tolerance: float) -> str | None:
    """For choices (N,) that need not be equal where rounding decides.

    A choice that differs from the best is right if its `score`, (N, choices), is within `tolerance` of it.
    """
    rows = torch.arange(len(score), device=score.device)
    excess = (score[rows, best] - score[rows, chosen]).abs()
    wrong = int((excess > tolerance).sum())
    return f"{wrong} of {len(best)} choices are wrong, by up to {excess.max():.1e}" if wrong else None


def nbytes(inputs: Sequence[Any]) -> int:
    """Memory of the tensors among an implementation's inputs."""
    return sum(value.nbytes for value in inputs if isinstance(value, Tensor))
