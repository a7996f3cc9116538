"""The parts of a model by name, and which of them learn.

A part is what the papers' stages freeze or train as a whole. The table of codes that the language model
reads, `code_embedding` (`gen_embed` in the released files), is a table of its own: in the released models it
is neither the tokenizer's codebook nor tied to it, is not of unit length, and no paper says in which stage it
learns. Here it learns where its adapter does, from stage 1 on, since the adapter has no other input;
`start_from_codebook` lets it begin at the codebook instead of at random, and the two go apart from there.
The codebook itself, by which pictures become codes and codes pictures, belongs to `vq`, to which no loss on
codes gives a gradient.

JanusFlow has parts of its own, named as its modules are. Its autoencoder of latents is another model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.quantized import QuantizedLinear
from janus.models.vae import VAE
from janus.models.vq import VQ
from janus.training.recipe.fields import show, unknown

AnyModel = Janus | JanusFlow

# The modules, or parameters, of which a part is made; the parts of a model hold all of it, and nothing twice.
PARTS: dict[str, tuple[str, ...]] = {
    "vision": ("vision",),
    "vision_adapter": ("vision_adapter",),
    "vq": ("vq",),
    "code_embedding": ("code_embedding",),
    "code_adapter": ("code_adapter",),
    "image_head": ("image_head",),
    "embed": ("language.embed",),
    "language": ("language.layers", "language.norm"),
    "text_head": ("language.head",),
}
# `begin_embedding` stands where a picture that is seen begins, and learns where the adapter does.
FLOW_PARTS: dict[str, tuple[str, ...]] = {
    "vision": ("vision",),
    "vision_adapter": ("vision_adapter",),
    "begin_embedding": ("begin_embedding",),
    "encoder": ("encoder",),
    "latent_adapter": ("latent_adapter",),
    "velocity_norm": ("velocity_norm",),
    "velocity_adapter": ("velocity_adapter",),
    "decoder": ("decoder",),
    "embed": ("language.embed",),
    "language": ("language.layers", "language.norm"),
    "text_head": ("language.head",),
}
# What a model may have beside them while it learns, and only then: it always learns. A JanusFlow's projector
# (`janus.training.flow`), or what SigLIP is trained with (`janus.training.siglip`).
ALIGNMENT = "alignment"
VQ_PARTS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder", "quant_conv"),
    "codebook": ("codebook",),
    "decoder": ("post_quant_conv", "decoder"),
}
VAE_PARTS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder", "quant_conv"),
    "decoder": ("post_quant_conv", "decoder"),
}

# The stages of Janus (Wu et al., 2024) and Janus-Pro (Chen et al., 2025): adapters and the image head; all
# but the encoders; all but the picture tokenizer.
STAGE_1 = ("vision_adapter", "code_embedding", "code_adapter", "image_head")
STAGE_2 = (*STAGE_1, "embed", "language", "text_head")
STAGE_3 = ("vision", *STAGE_2)
# Those of JanusFlow (Ma et al., 2024): the linear layers and the U-ViT; all but SigLIP; all.
FLOW_STAGE_1 = (
    "vision_adapter",
    "begin_embedding",
    "encoder",
    "latent_adapter",
    "velocity_norm",
    "velocity_adapter",
    "decoder",
)
FLOW_STAGE_2 = (*FLOW_STAGE_1, "embed", "language", "text_head")
FLOW_STAGE_3 = ("vision", *FLOW_STAGE_2)


def parts_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The table of a model's class."""
    if isinstance(model, Janus):
        return PARTS
    if isinstance(model, JanusFlow):
        return FLOW_PARTS
    if isinstance(model, VQ):
        return VQ_PARTS
    if isinstance(model, VAE):
        return VAE_PARTS
    raise ValueError(
        f"a {type(model).__name__} has no parts that are known: train a Janus, a JanusFlow, a VQ or a VAE"
    )


def check_parts(train: Iterable[str], known: Collection[str]) -> None:
    """ValueError for a name that is no part, or is given twice."""
    seen: set[str] = set()
    for part in train:
        if part not in known:
            raise ValueError(f"{show(part)} {unknown(part, tuple(known))}")
        if part in seen:
            raise ValueError(f"{show(part)} is named twice: take one out")
        seen.add(part)


def part_of(name: str, parts: Mapping[str, tuple[str, ...]]) -> str:
    """The part that the parameter `name` belongs to."""
    for part, stems in parts.items():
        if any(name == stem or name.startswith(f"{stem}.") for stem in stems):
            return part
    raise KeyError(f"no part holds {name}")


def parameters(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """By part, the parameters by name; a head that is the word table itself is the table's alone."""
    parts = parts_of(model)
    if hasattr(model, ALIGNMENT):
        parts = parts | {ALIGNMENT: (ALIGNMENT,)}
    found: dict[str, dict[str, nn.Parameter]] = {part: {} for part in parts}
    for name, parameter in model.named_parameters():
        found[part_of(name, parts)][name] = parameter
    return found


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def freeze(model: AnyModel | VQ | VAE, train: Collection[str]) -> None:
    """Let the parts named in `train` learn, in training mode, and have all others stand still.

    Raises ValueError for unknown parts, for quantized ones, for one of two that are tied, and where nothing
    is left to learn.
    """
    parts = parts_of(model)
    check_parts(train, parts)
    if isinstance(model, AnyModel) and model.config.language.tied_head:
        named = [part for part in ("embed", "text_head") if part in train]
        if len(named) == 1:
            raise ValueError(f"{named[0]} is tied in this model: train both embed and text_head, or neither")
    model.train(bool(train))
    for part, stems in parts.items():
        learns = part in train
        for stem in stems:
            owner = model.get_submodule(stem.rpartition(".")[0])
            thing = getattr(owner, stem.rpartition(".")[2])
            if learns and any(isinstance(each, QuantizedLinear) for each in _modules(thing)):
                raise ValueError(f"{part} is quantized and cannot learn: load the model unquantized")
            thing.requires_grad_(learns)
            if isinstance(thing, nn.Module):
                thing.train(learns)
    if train and not trained(model):
        raise ValueError(f"{', '.join(train)} has no parameters in this model: train other parts as well")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within it all modules are as for inference, those that learn too: what drops out numbers does not."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in learning:
            module.training = True


def remove_alignment(model: nn.Module) -> None:
    """Take away, in place, what a model has for learning only, if anything."""
    if hasattr(model, ALIGNMENT):
        delattr(model, ALIGNMENT)


def _modules(thing: nn.Module | nn.Parameter) -> Iterable[nn.Module]:
    return thing.modules() if isinstance(thing, nn.Module) else ()


@torch.no_grad()
def start_from_codebook(model: Janus) -> None:
    """Set the language model's table of codes to the tokenizer's codebook, at unit length, in place."""
    table = model.code_embedding.weight
    table.copy_(F.normalize(model.vq.codebook.to(table.dtype), dim=1))
