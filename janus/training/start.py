"""What a run begins with: the model as a recipe says, of a checkpoint or of parts, and its processor.

Whatever is read is read strictly: names that are missing, left over or misshapen raise.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from janus.checks import one_line
from janus.config import JanusConfig, VQConfig
from janus.evaluation.defaults import FILE, stating
from janus.files import write_whole
from janus.models.janus import Janus
from janus.models.llama import Llama
from janus.models.vq import VQ
from janus.processing.processor import Processor
from janus.training.architecture import parse_architecture, render_architecture
from janus.training.parts import start_from_codebook
from janus.training.recipe import Recipe
from janus.training.recipe_sections import Start
from janus.training.weigh import DTYPES
from janus.training.worlds.shapes.processor import write_processor
from janus.weights.config_files import format_config, parse_config, read_janus_config
from janus.weights.hub import find
from janus.weights.load import empty_model, part_sizes
from janus.weights.names import Source, is_dropped, source
from janus.weights.read import contents, read, weight_files

VQ_WEIGHTS, VQ_SIZES = "vq.safetensors", "vq.json"
LANGUAGE, VISION = "language_model.", "vision_model.vision_tower."
Model = TypeVar("Model", bound=nn.Module)


def start_config(start: Start) -> JanusConfig | VQConfig:
    """The architecture that a recipe leads to, of which no weight is read."""
    if start.architecture is not None:
        return start.architecture
    assert start.checkpoint is not None  # else the recipe would not have been made
    if _is_vq(start.checkpoint):
        return _read_vq_config(Path(start.checkpoint))
    return read_janus_config(find(start.checkpoint, weights=False))


def start_processor(start: Start) -> Processor:
    """The processor of the checkpoint, or the one named, or one that is made of a world's sentences."""
    named = start.processor or start.checkpoint
    if named is not None:
        return Processor.from_pretrained(named)
    assert isinstance(start.architecture, JanusConfig)
    assert start.world == "shapes"  # else the recipe would not have been made
    config = start.architecture
    with tempfile.TemporaryDirectory() as folder:
        write_processor(
            folder,
            image_size=config.vision.image_size,
            image_tokens=config.vision.tokens,
            vocabulary=config.language.vocabulary,
        )
        return Processor.from_pretrained(folder)


def with_defaults(processor: Processor, guidance: float, temperature: float) -> Processor:
    """The processor, with files that state what to draw with where nobody says otherwise."""
    content = stating(processor.files, guidance=guidance, temperature=temperature)
    return Processor({**processor.files, FILE: content})


def start_janus(recipe: Recipe, processor: Processor, device: torch.device) -> Janus:
    """The model before its first step, in the recipe's precision; it goes on with the processor's files.

    Random weights are of the recipe's seed, and torch's own generator stays.
    """
    start, dtype = recipe.model, DTYPES[recipe.precision]
    if start.checkpoint is not None:
        model = Janus.from_pretrained(start.checkpoint, device=device, dtype=dtype)
        if model.config.quantization is not None:
            raise ValueError(
                f"{start.checkpoint} is quantised to {model.config.quantization}, and only floats learn: "
                "give the checkpoint that it was made from"
            )
    else:
        assert isinstance(start.architecture, JanusConfig)
        config = start.architecture
        model = _random(lambda: Janus(config), recipe.seed)
        begin_language(model.language, torch.Generator().manual_seed(recipe.seed))
        if start.vision is not None:
            fill_part(model, "vision", _timm(start.vision), VISION)
        if start.language is not None:
            fill_part(model, "language", _language(start.language), LANGUAGE)
    if start.vq is not None:
        model.vq.load_state_dict(load_vq(start.vq, model.config.vq).state_dict())
    if start.code_embedding == "codebook":
        start_from_codebook(model)
    model.to(device, dtype)
    model.files = processor.files
    return model


def describe(model: Janus) -> dict[str, Any]:
    """All of a model but its weights: what `blank` makes one like it of."""
    config = format_config(model.config, "deepseek", dtype=model.config.dtype)
    return {"config": json.dumps(config), "files": dict(model.files)}


def blank(description: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Janus:
    """A model whose weights hold anything, and are still to be filled."""
    config, _ = parse_config(json.loads(description["config"]))
    assert isinstance(config, JanusConfig)  # else `describe` would not have been given its model
    model = empty_model(config).to(dtype).to_empty(device=device)
    model.language.tie()
    model.files = description["files"]
    return model


def start_vq(recipe: Recipe, device: torch.device) -> VQ:
    """The tokenizer before its first step, in float32; it may be a whole model's."""
    start = recipe.model
    config = start_config(start)
    own = config if isinstance(config, VQConfig) else config.vq
    path = start.checkpoint or start.vq
    vq = _random(lambda: VQ(own), recipe.seed) if path is None else load_vq(path, own)
    return vq.to(device)


def _random(make: Callable[[], Model], seed: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


@torch.no_grad()
def begin_language(language: Llama, generator: torch.Generator) -> None:
    """Set, in place, the scales of a language model of random weights.

    Words begin as small as published models' do, where PyTorch's own tables would drown codes and pictures;
    and what 2 layers a block add up to shrinks, so that depth does not make it larger. Source: Radford et
    al., "Language Models are Unsupervised Multitask Learners" (2019).
    """
    language.embed.weight.normal_(std=0.02, generator=generator)
    factor = (2 * len(language.layers)) ** -0.5
    for name, weight in language.named_parameters():
        if name.endswith(("attention.o_proj.weight", "mlp.down_proj.weight")):
            weight.mul_(factor)


@torch.no_grad()
def fill_part(model: Janus, part: str, given: Mapping[str, Tensor], stem: str) -> None:
    """Fill a part from tensors by their published names, which in the released layout follow `stem`.

    Raises ValueError naming up to ten that are missing, left over or misshapen.
    """
    tied = {"language.head.weight"} if model.config.language.tied_head else set()
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(f"{part}.")}
    plan = {name: source(name, "deepseek") for name in own if name not in tied}
    wanted = {each.removeprefix(stem) for plan_source in plan.values() for each in plan_source.names}
    unused = source("language.head.weight", "deepseek").names if tied else ()
    left = [
        name
        for name in given
        if name not in wanted
        and stem + name not in unused
        and not is_dropped(stem + name, "deepseek", model.config.vision.depth)
    ]
    _refuse(part, "missing", wanted - set(given))
    _refuse(part, "unexpected", left)
    for name, plan_source in plan.items():
        _fill(model, name, own[name], plan_source, given, stem)


def _fill(
    model: Janus, name: str, target: Tensor, plan: Source, given: Mapping[str, Tensor], stem: str
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


def _language(path: str) -> dict[str, Tensor]:
    """A Llama's tensors by the names of its safetensors."""
    folder = find(path)
    stored = contents(weight_files(folder))
    files: dict[Path, list[str]] = {}
    for name, each in stored.items():
        files.setdefault(each.file, []).append(name)
    return {name: tensor for file, names in files.items() for name, tensor in read(file, names)}


def _timm(name: str) -> dict[str, Tensor]:
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


def save_vq(vq: VQ, folder: Path) -> None:
    """Write a tokenizer by itself: its weights and its sizes, which `load_vq` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = render_architecture(vq.config)
    weights = {name: tensor.cpu() for name, tensor in vq.state_dict().items()}
    write_whole(folder / VQ_WEIGHTS, lambda file: save_file(weights, file))
    write_whole(folder / VQ_SIZES, (json.dumps(sizes, indent=1) + "\n").encode())


def load_vq(path: str | Path, config: VQConfig | None = None) -> VQ:
    """A tokenizer in float32 on the CPU: one by itself, or a whole model's. Of the sizes given, if any."""
    if not _is_vq(path):
        vq = Janus.from_pretrained(path, device="cpu", dtype="float32").vq
    else:
        folder = Path(path)
        vq = VQ(_read_vq_config(folder))
        try:
            vq.load_state_dict(load_file(folder / VQ_WEIGHTS))
        except Exception as error:  # of safetensors' own class, or torch's for names and shapes
            raise ValueError(
                f"{folder / VQ_WEIGHTS} cannot be read ({one_line(error)}): train or copy it again"
            ) from error
    if config is not None and vq.config != config:
        differing = [name for name in vars(config) if getattr(config, name) != getattr(vq.config, name)]
        raise ValueError(
            f"the tokenizer in {path} differs from the architecture in {', '.join(differing)}: give its sizes"
        )
    return vq


def _is_vq(path: str | Path) -> bool:
    return (Path(path) / VQ_WEIGHTS).is_file()


def vq_config(architecture: Any) -> VQConfig:
    """The sizes of a tokenizer by itself, as `render_architecture` gave them; ValueError for any others."""
    config = parse_architecture(architecture)
    if not isinstance(config, VQConfig):
        raise ValueError("the sizes are of a whole model, and not of a tokenizer alone")
    return config


def _read_vq_config(folder: Path) -> VQConfig:
    file = folder / VQ_SIZES
    try:
        return vq_config(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({one_line(error)}): train or copy it again") from error
