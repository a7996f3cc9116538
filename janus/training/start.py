"""What a run begins with: the model as a recipe says, of a checkpoint or of parts, and its processor.

Whatever is read is read strictly: names that are missing, left over or misshapen raise.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from janus.config import AnyConfig, JanusFlowConfig, VQConfig
from janus.evaluation.defaults import FILE, stating
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.vae import VAE, VAEConfig
from janus.models.vq import VQ
from janus.processing.processor import Processor
from janus.training.costs.weigh import DTYPES
from janus.training.initialization import begin_language, begin_velocity, begin_vision
from janus.training.other_models import (
    FLOW_VISION,
    LANGUAGE,
    VISION,
    fill_part,
    load_floats,
    published_llama,
    published_siglip,
    take_backbone,
)
from janus.training.parts import AnyModel, start_from_codebook
from janus.training.recipe.architecture import Architecture, parse_architecture
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import Start
from janus.training.vq_files import is_vq, load_vq, read_vq_config
from janus.training.worlds.shapes.processor import write_processor
from janus.weights.config_files import format_config, parse_config, read_config
from janus.weights.hub import find
from janus.weights.load import empty_model
from janus.weights.vae import RELEASED, load_vae, own_vae, read_vae_config

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
        model = load_floats(start.checkpoint, device, dtype)
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
            fill_part(model, "vision", published_siglip(start.vision), stem)
        if start.language is not None:
            fill_part(model, "language", published_llama(start.language), LANGUAGE)
        if start.backbone is not None:
            take_backbone(model, start.backbone, processor.tokenizer)
    if isinstance(model, Janus):
        if start.vq is not None:
            model.vq.load_state_dict(load_vq(start.vq, model.config.vq).state_dict())
        if start.code_embedding == "codebook":
            start_from_codebook(model)
    model.to(device, dtype)
    model.files = processor.files
    return model


def _made(config: AnyConfig) -> AnyModel:
    return JanusFlow(config) if isinstance(config, JanusFlowConfig) else Janus(config)


def find_vae(start: Start) -> str | Path:
    """Where a JanusFlow's autoencoder is: as named, else in the checkpoint's folder, else the released."""
    if start.vae is not None:
        return start.vae
    own = None if start.checkpoint is None else own_vae(find(start.checkpoint, weights=False))
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
