"""AdamW over what learns. Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from janus.models.llama import RMSNorm
from janus.training.parts import trained
from janus.training.recipe_sections import Optimizer

NORMS = (RMSNorm, nn.LayerNorm, nn.GroupNorm)
# Tables of which a step uses some rows: SigLIP's positions and the VQ tokenizer's codes are bare parameters.
TABLES = ("pos_embed", "codebook")
FUSED = ("cuda", "cpu", "mps")


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW with two groups, what decays first, each in the model's order; an empty group is left out.

    Each step is one fused pass where torch has it. Moments are of the parameters' own dtype. Raises
    ValueError where nothing learns.
    """
    learning = trained(model)
    if not learning:
        raise ValueError("no parameter learns: name the parts in the recipe's train")
    kinds = kinds_of(model)
    groups = []
    for decays in (True, False):
        names = [name for name in learning if (kinds[name] not in settings.undecayed) == decays]
        if names:
            decay = settings.weight_decay if decays else 0.0
            groups.append({"params": [learning[name] for name in names], "weight_decay": decay})
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=_fused(learning)
    )


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
