"""Low-rank adapters, by the package peft: put into a model, kept by themselves, loaded, merged.

Beside a linear layer of (N, K) weights an adapter computes B A x * alpha / rank, A (rank, K), B (N, rank).
What is written is peft's own format, so `peft.PeftModel.from_pretrained(model, folder)` reads it as well.
Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from janus.checks import one_line
from janus.files import write_whole
from janus.training.parts import AnyModel, freeze, trained
from janus.training.recipe.sections import LoRA
from janus.weights.write import write_tensors

NAME = "default"  # peft can have several in a model
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the model within peft's own wrapper


def add_adapters(model: AnyModel, settings: LoRA, *, train: Collection[str] = (), seed: int = 0) -> None:
    """Put adapters into a model, in place: they learn, beside the parts named in `train`, and nothing else.

    They begin without effect: A is random, by `seed`, and B is zero. Raises ValueError where peft is missing,
    where a layer with an adapter learns as a whole too, and for targets that are no linear layers of it.
    """
    freeze(model, train)
    learning = list(trained(model).values())
    config = _peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, config)
    for weight in learning:  # peft has stopped them
        weight.requires_grad_()
    for name, layer in adapted(model).items():
        if layer.base_layer.weight.requires_grad:
            raise ValueError(f"{name} learns as a whole and by an adapter: take it out of train or of lora")
        layer.lora_dropout.train()


def _inject(model: AnyModel, config: Any) -> None:
    for target in config.target_modules:
        named = [module for name, module in model.named_modules() if f".{name}".endswith(f".{target}")]
        if not named or not all(isinstance(module, nn.Linear) for module in named):
            raise ValueError(
                f"lora: {target} is no linear layer of the model: name layers by the ends of their names, "
                'such as "attention.qkv"'
            )
    _peft().inject_adapter_in_model(config, model, NAME)


def adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter by name, as peft has wrapped them."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def merge_adapters(model: AnyModel) -> None:
    """Replace layers with an adapter by plain ones that compute the same, for good, in place."""
    for name, layer in adapted(model).items():
        model.set_submodule(name, _plain(layer))
    if hasattr(model, "peft_config"):
        del model.peft_config


@torch.no_grad()
def _plain(layer: Any) -> nn.Module:
    base = layer.base_layer
    down, up = layer.lora_A[NAME].weight.float(), layer.lora_B[NAME].weight.float()
    plain: nn.Module = copy.copy(base)  # which shares the table of parameters until it gets its own
    plain._parameters = dict(base._parameters)
    plain.__dict__.pop("forward", None)  # its own, of `widen_linears`, would multiply by the weight of `base`
    total = base.weight.float() + up @ down * layer.scaling[NAME]
    plain.weight = nn.Parameter(total.to(base.weight.dtype), requires_grad=False)
    return plain


def save_adapters(model: AnyModel, folder: str | Path) -> Path:
    """Write a model's adapters, without the model, as peft does; -> the folder.

    Raises ValueError for a model that has none.
    """
    layers, folder = adapted(model), Path(folder)
    if not layers:
        raise ValueError("the model has no adapters to save: add_adapters gives it some")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{PREFIX}{name}.{kind}.weight": getattr(layer, kind)[NAME].weight
        for name, layer in layers.items()
        for kind in ("lora_A", "lora_B")
    }
    write_whole(folder / WEIGHTS, lambda file: write_tensors(weights, file, metadata={"format": "pt"}))
    given: Any = model.peft_config
    config = copy.copy(given[NAME])
    config.inference_mode = True  # what peft reads adapters for, unless it is told otherwise
    config.save_pretrained(str(folder))
    return folder


def load_adapters(model: AnyModel, folder: str | Path) -> None:
    """Put the adapters of a folder into the model that they were trained on, or one like it, in place.

    They do not learn until told to. Raises ValueError, before the model has changed, for a folder without
    adapters, and after it for one whose adapters are of other layers or sizes.
    """
    file = Path(folder) / WEIGHTS
    try:
        config = _peft().LoraConfig.from_pretrained(str(folder))
        weights = load_file(file)
    except Exception as error:  # of peft's, json's and safetensors' own classes
        raise ValueError(
            f"{folder} holds no adapters that can be read ({one_line(error)}): give the folder that "
            "save_adapters wrote"
        ) from error
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    _inject(model, config)
    for weight in learning:
        weight.requires_grad_()
    own: dict[str, nn.Parameter] = {}
    for name, layer in adapted(model).items():
        for kind in ("lora_A", "lora_B"):
            own[f"{PREFIX}{name}.{kind}.weight"] = getattr(layer, kind)[NAME].weight.requires_grad_(False)
    differing = sorted(set(own) ^ set(weights)) or [
        name for name, weight in own.items() if weight.shape != weights[name].shape
    ]
    if differing:
        raise ValueError(
            f"the adapters in {folder} are of another model: {differing[0].removeprefix(PREFIX)} is missing "
            "or of another size; load the model that they were trained on"
        )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        raise ValueError(
            f"lora needs the package peft ({one_line(error)}): pip install peft, or take it out"
        ) from error
