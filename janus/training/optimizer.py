"""The optimizer over what learns: AdamW, or Muon for the matrices of the blocks beside it.

Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); `muon` has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn

from janus.models.llama import RMSNorm
from janus.models.uvit import GlobalResponseNorm
from janus.training.muon import Muon
from janus.training.parts import ALIGNMENT, trained
from janus.training.recipe.sections import Optimizer

NORMS = (RMSNorm, nn.LayerNorm, nn.GroupNorm, GlobalResponseNorm)
# What is no layer's: SigLIP's positions and the VQ tokenizer's codes, of which a step uses some rows, and
# JanusFlow's begin of a picture.
TABLES = ("pos_embed", "codebook", "begin_embedding")
BLOCKS = {"layers", "blocks"}
FUSED = ("cuda", "cpu", "mps")


def build_optimizer(
    model: nn.Module, settings: Optimizer, group: distributed.ProcessGroup | None = None
) -> torch.optim.Optimizer:
    """What the settings say over what learns, in groups of what decays and what does not.

    Each group is in the model's order, and an empty one is left out. A step of AdamW is one fused pass where
    torch has it. Moments are of the parameters' own dtype. Processes of a `group` share out what each would
    compute alike. Raises ValueError where nothing learns.
    """
    learning = trained(model)
    if not learning:
        raise ValueError("no parameter learns: name the parts in the recipe's train")
    matrices = block_matrices(learning) if settings.kind == "muon" else {}
    others = {name: weight for name, weight in learning.items() if name not in matrices}
    kinds = kinds_of(model)
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        muon = Muon(matrices.values(), lr=settings.lr, weight_decay=settings.weight_decay, group=group)
        parts.append(muon)
    if others:
        parts.append(_adamw(others, kinds, settings))
    return parts[0] if len(parts) == 1 else Together(parts)


def block_matrices(learning: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The matrices of blocks that come one after another.

    Not tables, heads, adapters, convolutions, or the projector that a JanusFlow learns with.

    Matrices that are computed as one (`JoinedLinear`, SigLIP's `qkv`) are one to Muon too.
    """
    return {
        name: weight
        for name, weight in learning.items()
        if weight.ndim == 2
        and not BLOCKS.isdisjoint(name.split("."))
        and not name.startswith(f"{ALIGNMENT}.")
    }


def _adamw(
    learning: Mapping[str, nn.Parameter], kinds: Mapping[str, str], settings: Optimizer
) -> torch.optim.Optimizer:
    groups = []
    for decays in (True, False):
        names = [name for name in learning if (kinds[name] not in settings.undecayed) == decays]
        if names:
            decay = settings.weight_decay if decays else 0.0
            groups.append({"params": [learning[name] for name in names], "weight_decay": decay})
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=_fused(learning)
    )


class Together(torch.optim.Optimizer):
    """Several optimizers, each of parameters of its own, as one: their groups and states are its."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state
        # The very tables of the parts: a rate that is set here is theirs.
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of each; `closure` is not called."""
        for part in self.parts:
            part.step()


@torch.no_grad()
def begin_states(optimizer: torch.optim.Optimizer) -> None:
    """Have it keep, of each parameter of which it keeps nothing yet, what it would begin with at a step."""
    for group in optimizer.param_groups:
        is_adamw = "fused" in group
        moments = ("exp_avg", "exp_avg_sq") if is_adamw else ("momentum_buffer",)
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state:
                continue
            if is_adamw:  # which counts its steps, where it computes
                device = parameter.device if group["fused"] else None
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for moment in moments:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def kinds_of(model: nn.Module) -> dict[str, str]:
    """What each parameter is: "norms", "biases" (a norm's is a norm's), "embeddings" or "weights".

    A head that is the word table itself is an embedding.
    """
    owners = dict(model.named_modules())
    return {name: _kind(owners[name.rpartition(".")[0]], name) for name, _ in model.named_parameters()}


def _kind(owner: nn.Module, name: str) -> str:
    leaf = name.rpartition(".")[2]
    if isinstance(owner, NORMS):
        return "norms"
    if isinstance(owner, nn.Embedding) or leaf in TABLES:
        return "embeddings"
    return "biases" if leaf.endswith("bias") else "weights"


def _fused(learning: Mapping[str, nn.Parameter]) -> bool:
    return all(weight.device.type in FUSED and weight.is_floating_point() for weight in learning.values())
