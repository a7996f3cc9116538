"""Muon: a step for matrices, of momentum whose singular values are made alike.

Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), whose steps and
coefficients these are; Liu et al., "Muon is scalable for LLM training" (2025), whose size of updates is.
torch.optim.Muon computes the same in bfloat16 everywhere, one matrix after another: a CPU without
instructions for it takes ten times as long as in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn

from janus.devices import computed_in

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x³ and x⁵: the steepest at 0 that keep within about 1
STEPS = 5
LEAST_NORM = 1e-7
AT_ONCE = 2**22  # numbers in matrices of one shape that are computed together: small ones wait for Python


class Muon(torch.optim.Optimizer):
    """Updates are as large as AdamW's, so that one rate serves both; the momentum is Nesterov's.

    Processes of a `group`, all of which have the same gradients, share the matrices out.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.group = group

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of the matrices that have gradients; `closure` is not called."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for alike in of_one_shape(group["params"]):
                moved = torch.stack([self._moved(weight, momentum) for weight in alike])
                updates = orthogonal_by_all(moved, self.group)
                size = 0.2 * max(updates.shape[-2:]) ** 0.5
                for weight, update in zip(alike, updates, strict=True):
                    weight.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * size)

    def _moved(self, weight: nn.Parameter, momentum: float) -> Tensor:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        kept: Tensor = state["momentum_buffer"]
        kept.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(kept, momentum)


def of_one_shape(matrices: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Those that have gradients, in their order, by kinds that can be stacked, at most AT_ONCE in each."""
    kinds: dict[Any, list[nn.Parameter]] = defaultdict(list)
    for weight in matrices:
        if weight.grad is not None:
            kinds[weight.shape, weight.dtype, weight.device].append(weight)
    for alike in kinds.values():
        together = max(1, AT_ONCE // alike[0].numel())
        for first in range(0, len(alike), together):
            yield alike[first : first + together]


def orthogonal_by_all(matrices: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """As `orthogonal`; of matrices that all processes of a group have, each computes every so many-th."""
    if group is None:
        return orthogonal(matrices)
    found, own = torch.zeros_like(matrices), slice(group.rank(), None, group.size())
    if len(matrices[own]):
        found[own] = orthogonal(matrices[own])
    distributed.all_reduce(found, group=group)
    return found


def orthogonal(matrices: Tensor) -> Tensor:
    """U V' of each matrix U S V' (n, rows, columns), nearly: singular values end between 0.68 and 1.14.

    By Newton's and Schulz's iteration, in bfloat16 where the device has it, and in float32 else.
    """
    computes = computed_in(matrices.device, torch.bfloat16)
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).to(computes)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)
