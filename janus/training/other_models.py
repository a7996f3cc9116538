"""Parts of other models that a new one begins with: a SigLIP of timm, a Llama, the backbone of a checkpoint.

Read strictly: names that are missing, left over or misshapen raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib import import_module
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from janus.checks import one_line
from janus.processing.tokenizer import Tokenizer
from janus.training.parts import AnyModel
from janus.training.recipe.sections import BACKBONE
from janus.weights.hub import find
from janus.weights.load import load, part_sizes
from janus.weights.names import Source, is_dropped, naming_of, source
from janus.weights.read import contents, read, weight_files

LANGUAGE, VISION = "language_model.", "vision_model.vision_tower."
FLOW_VISION = "vision_und_enc_model.vision_tower."


def load_floats(path: str, device: torch.device, dtype: torch.dtype) -> AnyModel:
    """A checkpoint whose weights can learn; ValueError where it is quantized."""
    model = load(path, device=device, dtype=dtype)
    if model.config.quantization is not None:
        raise ValueError(
            f"{path} is quantized to {model.config.quantization}, and only floats learn: "
            "give the checkpoint that it was made from"
        )
    return model


@torch.no_grad()
def fill_part(model: AnyModel, part: str, given: Mapping[str, Tensor], stem: str) -> None:
    """Fill a part from tensors by their published names, which in the released layout follow `stem`.

    Raises ValueError naming up to ten that are missing, left over or misshapen.
    """
    tied = {"language.head.weight"} if model.config.language.tied_head else set()
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(f"{part}.")}
    naming = naming_of(model.config, "deepseek")
    plan = {name: source(name, naming) for name in own if name not in tied}
    wanted = {each.removeprefix(stem) for plan_source in plan.values() for each in plan_source.names}
    unused = source("language.head.weight", naming).names if tied else ()
    left = [
        name
        for name in given
        if name not in wanted
        and stem + name not in unused
        and not is_dropped(stem + name, naming, model.config.vision)
    ]
    _refuse(part, "missing", wanted - set(given))
    _refuse(part, "unexpected", left)
    for name, plan_source in plan.items():
        _fill(model, name, own[name], plan_source, given, stem)


def take_backbone(model: AnyModel, path: str, tokenizer: Tokenizer) -> None:
    """Take, in place, the vision tower and the language model of the checkpoint `path`, of the same sizes.

    What reads and draws pictures between them stays as it is. ValueError where sizes differ, naming them, or
    where `tokenizer`, which the model will read by, has other words than the checkpoint's own.
    """
    given = load_floats(path, torch.device("cpu"), torch.float32)
    for part in BACKBONE:
        has, wants = getattr(given.config, part), getattr(model.config, part)
        differ = [each.name for each in fields(wants) if getattr(has, each.name) != getattr(wants, each.name)]
        if differ:
            theirs, ours = (
                ", ".join(f"{name} {getattr(config, name)}" for name in differ) for config in (has, wants)
            )
            raise ValueError(
                f"{path} has a {part} of {theirs}, and the architecture wants {ours}: give its sizes"
            )
        getattr(model, part).load_state_dict(getattr(given, part).state_dict())
    _require_words(Tokenizer.from_files(given.files, where=path), tokenizer)


def _require_words(learned: Tokenizer, read: Tokenizer) -> None:
    """ValueError unless every plain token that is `read` has the id that the language model `learned`."""
    for token, number in sorted(read.backend.vocabulary.items(), key=itemgetter(1)):
        known = learned.backend.vocabulary.get(token)
        if token not in read.backend.specials and known != number:
            raise ValueError(
                f"{token!r} is token {number} of {read.where} and {known} of "
                f"{learned.where}, whose language model would read other words: give model.processor = "
                f'"{learned.where}"'
            )


def _fill(
    model: AnyModel, name: str, target: Tensor, plan: Source, given: Mapping[str, Tensor], stem: str
) -> None:
    sizes = part_sizes(model, name, len(target), len(plan.names))
    for their, place in zip(plan.names, target.split(sizes), strict=True):
        tensor = given[their.removeprefix(stem)]
        if tensor.shape != place.shape:
            raise ValueError(
                f"{their.removeprefix(stem)} is {tuple(tensor.shape)}, and the architecture wants "
                f"{tuple(place.shape)}: give its sizes, or other weights"
            )
        place.copy_(tensor)


def _refuse(part: str, what: str, names: Iterable[str]) -> None:
    found = sorted(names)
    if found:
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise ValueError(
            f"the weights for {part} do not fit its sizes: {what} {', '.join(found[:10])}{more}: give the "
            "sizes that they were trained with"
        )


def published_llama(path: str) -> dict[str, Tensor]:
    """A Llama's tensors by the names of its safetensors."""
    folder = find(path)
    stored = contents(weight_files(folder))
    files: dict[Path, list[str]] = {}
    for name, each in stored.items():
        files.setdefault(each.file, []).append(name)
    return {name: tensor for file, names in files.items() for name, tensor in read(file, names)}


def published_siglip(name: str) -> dict[str, Tensor]:
    """The tensors of a SigLIP that timm publishes weights of."""
    try:
        timm = import_module("timm")
    except ImportError as error:
        raise ValueError(f"model.vision = {name!r} is of timm: pip install timm, or leave it out") from error
    try:
        return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    # Any class of exception: timm raises its own, and those of what it fetches with.
    except Exception as error:
        raise ValueError(
            f"model.vision = {name!r} cannot be had from timm ({one_line(error)}): check the name and the "
            "network"
        ) from error
