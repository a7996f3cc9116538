"""Activations weighed: a step is run on tensors that have shapes and no memory, and what is alive is counted.

No file is read and no number computed, so a model of any size takes seconds, and what is counted follows the
model's code. Exact for what PyTorch allocates on the CPU; what an operation uses inside itself is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from janus import cpu
from janus.config import AnyConfig, JanusConfig, VQConfig
from janus.devices import computed_in
from janus.kernels.codebook import lookup
from janus.models.janusflow import JanusFlow
from janus.models.multimodal import MultimodalModel
from janus.models.vae import VAE, VAEConfig
from janus.models.vq import VQ
from janus.training.blocks import checkpoint_blocks
from janus.training.costs.live_bytes import LiveBytes
from janus.training.costs.longest import Row, fake_batch, rows_loss
from janus.training.data.outline import Geometry
from janus.training.data.packing import Batch
from janus.training.flow import attach_alignment
from janus.training.parts import AnyModel, freeze, trained
from janus.training.recipe.learning import FlowLearning
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import LoRA
from janus.training.siglip import ContrastObjective, attach_contrast
from janus.training.vae import VAEState, there_and_back, vae_losses
from janus.training.vq import (
    AutoencoderTraining,
    PatchDiscriminator,
    VQState,
    code,
    total,
    vq_losses,
)
from janus.training.widen import widen_linears
from janus.weights.load import empty_model

DTYPES = {"float32": torch.float32, "autocast": torch.float32, "bfloat16": torch.bfloat16}


Loss = Callable[[Any, Batch, Row], Tensor]  # of either family's model


@dataclass(frozen=True)
class Weighed:
    """Bytes, the batch's among them: `held` from forward to backward, with gradients `most` at any moment."""

    held: int
    most: int


def weigh(
    config: AnyConfig,
    recipe: Recipe,
    row: Row,
    rows: int,
    *,
    device: str = "cpu",
    checkpointing: bool | None = None,
    loss: Loss = rows_loss,
    geometry: Geometry | None = None,
) -> Weighed:
    """What forward and backward of so many rows take on top of the weights, on a device that is there.

    `checkpointing` is the recipe's if left out, `geometry` that of a JanusFlow's drawings. Raises ValueError
    for a device that is not there.
    """
    _check_device(device)
    model = hollow_model(config, recipe)
    with FakeTensorMode():
        _ready_model(model, recipe, device, checkpointing)
        if recipe.accumulate > 1:  # the gradients of the turns before are there already
            for weight in trained(model).values():
                weight.grad = torch.zeros_like(weight)
        with LiveBytes() as live:
            batch = fake_batch(config, row, rows, device, geometry)
            return run(model, recipe, lambda: loss(model, batch, row), device, live)


def run(
    model: nn.Module, recipe: Recipe, loss: Callable[[], Tensor], device: str, live: LiveBytes
) -> Weighed:
    """Forward and backward as training runs them, and what `live`, which is entered, saw meanwhile."""
    gradients = [weight.grad for weight in trained(model).values() if weight.grad is not None]
    before = sum(gradient.nbytes for gradient in gradients)
    with precision(recipe, device):
        value = loss()
    held = live.now
    if value.requires_grad:
        value.backward()
    return Weighed(held + before, live.most + before)


def weigh_contrast(
    config: AnyConfig, recipe: Recipe, pictures: int, captions: int, *, device: str = "cpu"
) -> Weighed:
    """As `weigh`, for a step of SigLIP's loss: so many pictures, and tokens to each caption, of a process."""
    _check_device(device)
    model = hollow_model(config, recipe)
    with FakeTensorMode():
        _ready_model(model, recipe, device)
        size = config.vision.image_size
        with LiveBytes() as live:
            pixels = torch.zeros(pictures, 3, size, size, device=device)
            ids = torch.zeros(pictures, captions, dtype=torch.long, device=device)
            ends = torch.full((pictures,), captions - 1, device=device)
            # What other processes send is small.
            fits = torch.zeros(pictures, pictures, dtype=torch.bool, device=device)
            objective = ContrastObjective(model)
            return run(model, recipe, lambda: objective(pixels, ids, ends, fits)[0], device, live)


def weigh_tokenizing(config: JanusConfig, recipe: Recipe, pictures: int, *, device: str = "cpu") -> int:
    """The most bytes alive while pictures become codes, all at once.

    A CPU takes 16-bit pictures one by one and in strips (`janus.models.vq_strips`), which needs less than the
    one float32 picture that is told for them.
    """
    _check_device(device)
    dtype = DTYPES[recipe.precision]
    if device == "cpu" and dtype != torch.float32:
        pictures, dtype = 1, torch.float32
    vq = empty_model(config).vq
    with FakeTensorMode(), torch.no_grad():
        _fill(vq, dtype, device)
        with LiveBytes() as live:
            vq.encode(torch.zeros(pictures, 3, config.picture_size, config.picture_size, device=device))
    return live.most


def weigh_encoding(config: VAEConfig, pictures: int, side: int, *, device: str = "cpu") -> int:
    """The most bytes alive while pictures become latents, all at once and in float32."""
    _check_device(device)
    with torch.device("meta"):
        vae = VAE(config)
    with FakeTensorMode(), torch.no_grad():
        _fill(vae, torch.float32, device)
        with LiveBytes() as live:
            vae.encode(torch.zeros(pictures, 3, side, side, device=device))
    return live.most


def weigh_vae(config: VAEConfig, recipe: Recipe, pictures: int, *, device: str = "cpu") -> Weighed:
    """As `weigh_vq`, of an autoencoder of latents."""
    _check_device(device)
    settings = replace(recipe.vae_training(), perceptual=0.0)
    size = recipe.picture_size
    with torch.device("meta"):
        vae, discriminator = VAE(config), discriminator_of(settings)
    with FakeTensorMode():
        _ready(vae, discriminator, recipe, device)
        state = VAEState.start(vae, replace(settings, discriminator_from=None))
        state.discriminator = discriminator
        state.step = settings.discriminator_from or 0

        def loss() -> Tensor:
            returned = there_and_back(vae, pixels, state, settings)
            return total(vae_losses(returned, pixels, state, settings), settings)

        with LiveBytes() as live:
            pixels = torch.zeros(pictures, 3, size, size, device=device)
            return run(vae, recipe, loss, device, live)


def weigh_vq(config: VQConfig, recipe: Recipe, pictures: int, *, device: str = "cpu") -> Weighed:
    """As `weigh`, for a step of the tokenizer's own training with all its terms but the perceptual one."""
    _check_device(device)
    settings = replace(recipe.vq_training(), perceptual=0.0)
    size = recipe.picture_size
    with torch.device("meta"):
        vq, discriminator = VQ(config), discriminator_of(settings)
    with FakeTensorMode():
        _ready(vq, discriminator, recipe, device)
        state = VQState.start(vq, replace(settings, discriminator_from=None))
        state.discriminator = discriminator
        last = settings.decoder_only_from
        state.step = max(settings.quantize_from, settings.discriminator_from or 0)
        state.step = state.step if last is None else min(state.step, last - 1)
        # The nearest codes take little, and their range cannot be looked at.
        vq.nearest = lambda latents: latents.new_zeros(latents[:, 0].shape, dtype=torch.long)  # type: ignore
        vq.lookup = lambda codes: lookup(codes, vq.codebook)  # type: ignore[method-assign]

        def loss() -> Tensor:
            coded = code(vq, pixels, state.step, settings)
            return total(vq_losses(vq, coded, pixels, state, settings), settings)

        with LiveBytes() as live:
            pixels = torch.zeros(pictures, 3, size, size, device=device)
            return run(vq, recipe, loss, device, live)


def _ready_model(model: AnyModel, recipe: Recipe, device: str, checkpointing: bool | None = None) -> None:
    """With hollow weights, as a run begins with it, in place; `checkpointing` is the recipe's if left out."""
    _fill(model, DTYPES[recipe.precision], device)
    prepare(model, recipe)
    if cpu.widens(torch.device(device), DTYPES[recipe.precision]):
        widen_linears(model)
    if recipe.activation_checkpointing if checkpointing is None else checkpointing:
        checkpoint_blocks(model)


def _ready(model: VQ | VAE, discriminator: nn.Module, recipe: Recipe, device: str) -> None:
    """Both with hollow weights, of which those learn that the recipe lets learn, in place."""
    for each in (model, discriminator):
        _fill(each, torch.float32, device)
    freeze(model, recipe.train)


def discriminator_of(settings: AutoencoderTraining) -> PatchDiscriminator:
    """The discriminator that `VQState.start` or `VAEState.start` would make."""
    return PatchDiscriminator(channels=settings.discriminator_channels, layers=settings.discriminator_layers)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
        there = kind == "cpu" or torch.get_device_module(kind).is_available()
    except RuntimeError:
        there = False
    if not there:
        raise ValueError(f"device {device} is not there: weigh for cpu, or on the machine that has it")


def computing_dtype(recipe: Recipe, device: str) -> torch.dtype:
    """What products are computed in: by a CPU that does bfloat16 badly, float32 even under autocast."""
    if recipe.precision == "autocast":
        return computed_in(torch.device(device), torch.bfloat16)
    return DTYPES[recipe.precision]


def precision(recipe: Recipe, device: str) -> AbstractContextManager[Any]:
    """How the recipe has a forward pass computed."""
    if recipe.precision == "autocast" and computing_dtype(recipe, device) == torch.bfloat16:
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return nullcontext()


def hollow_model(config: AnyConfig, recipe: Recipe) -> AnyModel:
    """The model that learns, on the meta device, with what it has for learning only."""
    model: AnyModel = empty_model(config)
    if recipe.task == "siglip":
        attach_contrast(model)
    elif isinstance(model, JanusFlow) and recipe.aligns:
        attach_alignment(model, (recipe.flow or FlowLearning()).aligned_after)
    return model


def prepare(model: AnyModel, recipe: Recipe) -> None:
    """Let learn what the recipe lets learn, adapters included, in place."""
    freeze(model, recipe.train)
    if recipe.lora is not None:
        _add_lora(model, recipe.lora)


def _fill(model: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Give parameters tensors of the mode around, in place of those without a device."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.empty(weight.shape, dtype=dtype, device=device))
    if isinstance(model, MultimodalModel):
        model.language.tie()


def _add_lora(model: AnyModel, lora: LoRA) -> None:
    """Low-rank adapters of the sizes that peft gives them, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(lora.targets):
            down = nn.Parameter(module.weight.new_empty(lora.rank, module.in_features))
            up = nn.Parameter(module.weight.new_empty(module.out_features, lora.rank))
            module.register_parameter("lora_down", down)
            module.register_parameter("lora_up", up)
            setattr(module, "forward", _with_lora(module, down, up, lora.alpha / lora.rank))  # noqa: B010


def _with_lora(module: nn.Linear, down: Tensor, up: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        return plain(x) + F.linear(F.linear(x, down), up) * scale

    return forward
