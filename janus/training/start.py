"""What a run begins with: the model as a recipe says, of a checkpoint or of parts, and its processor.

Whatever is read is read strictly: names that are missing, left over or misshapen raise.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from janus.checks import one_line
from janus.config import AnyConfig, JanusFlowConfig, VQConfig
from janus.evaluation.defaults import FILE, stating
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.llama import Llama
from janus.models.siglip import Block as VisionBlock
from janus.models.siglip import SigLIP
from janus.models.vae import VAE, VAEConfig
from janus.models.vq import VQ
from janus.processing.processor import Processor
from janus.training.architecture import Architecture, parse_architecture
from janus.training.parts import AnyModel, start_from_codebook
from janus.training.recipe import Recipe
from janus.training.recipe_sections import BACKBONE, Start
from janus.training.vq_files import is_vq, load_vq, read_vq_config
from janus.training.weigh import DTYPES
from janus.training.worlds.shapes.processor import write_processor
from janus.weights.config_files import format_config, parse_config, read_config
from janus.weights.hub import find
from janus.weights.load import empty_model, load, part_sizes
from janus.weights.names import Source, is_dropped, naming_of, source
from janus.weights.read import contents, read, weight_files
from janus.weights.vae import RELEASED, load_vae, own_vae, read_vae_config

LANGUAGE, VISION = "language_model.", "vision_model.vision_tower."
FLOW_VISION = "vision_und_enc_model.vision_tower."
Model = TypeVar("Model", bound=nn.Module)


def start_config(start: Start, task: str = "janus") -> Architecture:
    """The architecture that a recipe leads to, of which no weight is read."""
    if start.architecture is not None:
        return start.architecture
    assert start.checkpoint is not None  # else the recipe would not have been made
    if is_vq(start.checkpoint):
        return read_vq_config(Path(start.checkpoint))
    folder = find(start.checkpoint, weights=False)
    return read_vae_config(folder) if task == "vae" else read_config(folder)[0]


def start_processor(start: Start) -> Processor:
    """The processor of the checkpoint, or the one named, or one that is made of a world's sentences."""
    named = start.processor or start.checkpoint
    if named is not None:
        return Processor.from_pretrained(named)
    config = start.architecture
    assert isinstance(config, AnyConfig)
    assert start.world == "shapes"  # else the recipe would not have been made
    with tempfile.TemporaryDirectory() as folder:
        write_processor(
            folder,
            image_size=config.vision.image_size,
            image_tokens=config.vision.tokens,
            vocabulary=config.language.vocabulary,
            flow=isinstance(config, JanusFlowConfig),
        )
        return Processor.from_pretrained(folder)


def with_defaults(processor: Processor, guidance: float, temperature: float | None) -> Processor:
    """The processor, with files that state what to draw with where nobody says otherwise."""
    content = stating(processor.files, guidance=guidance, temperature=temperature)
    return Processor({**processor.files, FILE: content})


def start_janus(recipe: Recipe, processor: Processor, device: torch.device) -> AnyModel:
    """The model before its first step, in the recipe's precision; it goes on with the processor's files.

    Random weights are of the recipe's seed, and torch's own generator stays. ValueError, among all that
    loading raises, where the recipe says what a model of its family knows nothing of.
    """
    start, dtype = recipe.model, DTYPES[recipe.precision]
    model: AnyModel
    if start.checkpoint is not None:
        model = _load_floats(start.checkpoint, device, dtype)
        recipe.check_kind(model.config)
    else:
        config = start.architecture
        assert isinstance(config, AnyConfig)
        model = _random(lambda: _made(config), recipe.seed)
        begin_vision(model.vision, torch.Generator().manual_seed(recipe.seed))
        begin_language(model.language, torch.Generator().manual_seed(recipe.seed))
        if isinstance(model, JanusFlow):
            begin_velocity(model)
        if start.vision is not None:
            stem = VISION if isinstance(model, Janus) else FLOW_VISION
            fill_part(model, "vision", _timm(start.vision), stem)
        if start.language is not None:
            fill_part(model, "language", _language(start.language), LANGUAGE)
        if start.backbone is not None:
            take_backbone(model, start.backbone)
    if isinstance(model, Janus):
        if start.vq is not None:
            model.vq.load_state_dict(load_vq(start.vq, model.config.vq).state_dict())
        if start.code_embedding == "codebook":
            start_from_codebook(model)
    model.to(device, dtype)
    model.files = processor.files
    return model


def _load_floats(path: str, device: torch.device, dtype: torch.dtype) -> AnyModel:
    model = load(path, device=device, dtype=dtype)
    if model.config.quantization is not None:
        raise ValueError(
            f"{path} is quantised to {model.config.quantization}, and only floats learn: "
            "give the checkpoint that it was made from"
        )
    return model


def _made(config: AnyConfig) -> AnyModel:
    return JanusFlow(config) if isinstance(config, JanusFlowConfig) else Janus(config)


def find_vae(start: Start) -> str | Path:
    """Where a JanusFlow's autoencoder is: as named, else in the checkpoint's folder, else the released."""
    if start.vae is not None:
        return start.vae
    own = None if start.checkpoint is None else own_vae(Path(start.checkpoint).expanduser())
    return RELEASED if own is None else own


def start_vae(start: Start, kept: Path | None, device: torch.device) -> VAE:
    """The autoencoder that a JanusFlow learns with: in float32, and it stands still.

    A run that goes on has `kept` it.
    """
    path = find_vae(start) if kept is None else kept
    return load_vae(path, device=device, dtype="float32").requires_grad_(False)


def start_vae_config(start: Start) -> VAEConfig:
    """As `start_vae`, of which no weight is read."""
    return read_vae_config(find(find_vae(start), weights=False))


def describe(model: AnyModel) -> dict[str, Any]:
    """All of a model but its weights: what `blank` makes one like it of."""
    config = format_config(model.config, "deepseek", dtype=model.config.dtype)
    return {"config": json.dumps(config), "files": dict(model.files)}


def blank(description: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> AnyModel:
    """A model whose weights hold anything, and are still to be filled."""
    config, _ = parse_config(json.loads(description["config"]))
    model = empty_model(config).to(dtype).to_empty(device=device)
    model.language.tie()
    model.files = description["files"]
    return model


def start_autoencoder(recipe: Recipe, device: torch.device) -> VQ | VAE:
    """The tokenizer, or the autoencoder of latents, before its first step, in float32."""
    return start_vq(recipe, device) if recipe.task == "vq" else start_trained_vae(recipe, device)


def start_vq(recipe: Recipe, device: torch.device) -> VQ:
    """The tokenizer before its first step, in float32; it may be a whole model's."""
    start = recipe.model
    config = start_config(start, recipe.task)
    if isinstance(config, JanusFlowConfig):
        raise ValueError(
            f"{start.checkpoint} is a JanusFlow, which has no VQ tokenizer: name a Janus, or a VQ"
        )
    assert not isinstance(config, VAEConfig)  # else the recipe would not have been made
    own = config if isinstance(config, VQConfig) else config.vq
    path = start.checkpoint or start.vq
    vq = _random(lambda: VQ(own), recipe.seed) if path is None else load_vq(path, own)
    return vq.to(device)


def start_trained_vae(recipe: Recipe, device: torch.device) -> VAE:
    """An autoencoder of latents before its first step, in float32: of a checkpoint, or of random weights."""
    start = recipe.model
    if start.checkpoint is not None:
        return load_vae(start.checkpoint, device=device, dtype="float32")
    config = start.architecture
    assert isinstance(config, VAEConfig)  # else the recipe would not have been made
    return _random(lambda: VAE(config), recipe.seed).to(device)


def blank_autoencoder(architecture: Any, device: torch.device) -> VQ | VAE:
    """One of the sizes that `render_architecture` gave, whose weights are still to be filled."""
    config = parse_architecture(architecture)
    assert isinstance(config, VQConfig | VAEConfig)
    return (VQ(config) if isinstance(config, VQConfig) else VAE(config)).to(device)


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
def begin_vision(vision: SigLIP, generator: torch.Generator) -> None:
    """Set, in place, the scales of a vision tower of random weights.

    Positions begin as strong as patches are: where they are faint, a tower that sees little learns what there
    is and not where. Source: Google's big_vision, models/vit.py, by which SigLIP was trained from nothing.
    """
    patches = vision.patch_embed
    vision.pos_embed.normal_(std=vision.config.width**-0.5, generator=generator)
    patches.weight.normal_(std=patches.weight[0].numel() ** -0.5, generator=generator)
    for block in vision.blocks:
        assert isinstance(block, VisionBlock)
        # The joined matrix is three of as many outputs as inputs.
        outputs = ((block.attn.qkv, 3), (block.attn.proj, 1), (block.mlp.fc1, 1), (block.mlp.fc2, 1))
        for linear, joined in outputs:
            bound = (6 / (linear.in_features + linear.out_features // joined)) ** 0.5
            linear.weight.uniform_(-bound, bound, generator=generator)
    for name, bias in vision.named_parameters():
        if name.endswith("bias"):
            bias.zero_()


@torch.no_grad()
def begin_velocity(model: JanusFlow) -> None:
    """Have the velocity of random weights be 0, in place: noise on noise would have to be unlearned first.

    Source: Ho et al., "Denoising diffusion probabilistic models" (2020), whose last convolution begins so.
    """
    for weight in model.decoder.out_conv.parameters():
        weight.zero_()


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
        and not is_dropped(stem + name, naming, model.config.vision.depth)
    ]
    _refuse(part, "missing", wanted - set(given))
    _refuse(part, "unexpected", left)
    for name, plan_source in plan.items():
        _fill(model, name, own[name], plan_source, given, stem)


def take_backbone(model: AnyModel, path: str) -> None:
    """Take, in place, the vision tower and the language model of the checkpoint `path`, of the same sizes.

    What reads and draws pictures between them stays as it is. ValueError where sizes differ, naming them.
    """
    given = _load_floats(path, torch.device("cpu"), torch.float32)
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
