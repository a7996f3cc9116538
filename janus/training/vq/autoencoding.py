"""Training of autoencoders, VQ and KL alike: reconstruction, perceptual and adversarial losses, their steps.

B pictures of (H, W) pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, distributed, nn

from janus import cpu
from janus.checks import require_number, require_whole
from janus.training.vq.discriminator import PatchDiscriminator, adversarial_loss, discriminator_loss
from janus.training.vq.objectives import foreground_pixels, reconstruction_loss
from janus.training.vq.perceptual import Perceptual
from janus.training.vq.ranks import average_gradients, averaged

ABOVE_0 = 5e-324  # the least float that is


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """How pictures learn to come back.

    Weights of the terms: `l1`, `l2`, `perceptual`, `adversarial`. `foreground` is the weight of a pixel that
    differs from `background`, an 8-bit color, by more than `tolerance` levels, where other pixels have 1.
    From step `discriminator_from` on, counted from 0, there is the adversarial term (None: never).
    `bfloat16` runs the networks under autocast; parameters and losses stay float32.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    bfloat16: bool = False
    seed: int = 0
    l1: float = 0.0
    l2: float = 1.0
    perceptual: float = 0.0
    adversarial: float = 0.5
    background: tuple[int, int, int] | None = None
    foreground: float = 1.0
    tolerance: int = 2
    discriminator_from: int | None = None
    discriminator_channels: int = 64
    discriminator_layers: int = 3

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip", "foreground"):
            require_number(name, getattr(self, name), "a number above 0", least=ABOVE_0)
        for name in ("weight_decay", "l1", "l2", "perceptual", "adversarial"):
            require_number(name, getattr(self, name), "a number of at least 0", least=0)
        for name in ("seed", "tolerance"):
            require_whole(name, getattr(self, name), least=0)
        if self.discriminator_from is not None:
            require_whole("discriminator_from", self.discriminator_from, least=0)
        if len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, not {self.betas!r}")
        for beta in self.betas:
            require_number("betas", beta, "two numbers from 0 to 0.9999", least=0, most=0.9999)
        if self.background is not None:
            if len(self.background) != 3:
                raise ValueError(f"background must be three levels, of R, G and B, not {self.background!r}")
            for level in self.background:
                if require_whole("background", level, least=0) > 255:
                    raise ValueError(f"background must be of levels up to 255, not {self.background!r}")

    def is_adversarial(self, step: int) -> bool:
        return self.discriminator_from is not None and step >= self.discriminator_from


@dataclass
class AutoencoderState:
    """What a step reads and writes beside the model; `state_dict` holds all that a run needs to go on."""

    step: int
    optimizer: torch.optim.Optimizer
    discriminator: PatchDiscriminator | None
    discriminator_optimizer: torch.optim.Optimizer | None
    perceptual: nn.Module | None
    group: distributed.ProcessGroup | None

    def state_dict(self) -> dict[str, Any]:
        """All but the group and the perceptual network; the model's own weights are not among it."""
        kept = [field.name for field in fields(self) if field.name not in ("group", "perceptual")]
        values = {name: getattr(self, name) for name in kept}
        return {
            name: value.state_dict() if hasattr(value, "state_dict") else value
            for name, value in values.items()
            if value is not None
        }

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave. Raises ValueError where the two do not hold the same parts."""
        wanted = set(self.state_dict())
        if wanted != set(values):
            raise ValueError(
                f"the state of the training differs in {', '.join(sorted(wanted ^ set(values)))}: "
                "go on with the settings it was saved under"
            )
        for name, value in values.items():
            own = getattr(self, name)
            if hasattr(own, "load_state_dict"):
                own.load_state_dict(value)
            else:
                setattr(self, name, value.to(own.device) if isinstance(own, Tensor) else value)


def begun(
    model: nn.Module,
    config: AutoencoderTraining,
    optimizer: torch.optim.Optimizer | None,
    group: distributed.ProcessGroup | None,
) -> dict[str, Any]:
    """The fields of an `AutoencoderState` at step 0.

    The optimizer is AdamW over what requires gradients, unless the caller brings one. With a `group` each of
    its processes takes as many pictures, and gradients and counts are of all. The discriminator's initial
    weights are of `config.seed`; torch's own generator stays. Raises ValueError for a model that is not
    float32, and as `Perceptual` does where that term is on.
    """
    weight = next(model.parameters())
    if weight.dtype != torch.float32:
        raise ValueError(
            f"a {type(model).__name__} trains in float32, not {weight.dtype}: set bfloat16 for faster steps"
        )
    discriminator = discriminator_optimizer = None
    if config.discriminator_from is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            discriminator = PatchDiscriminator(
                channels=config.discriminator_channels, layers=config.discriminator_layers
            ).to(weight.device)
        discriminator_optimizer = _adam(discriminator, config)
    return {
        "step": 0,
        "optimizer": optimizer or _adam(model, config),
        "discriminator": discriminator,
        "discriminator_optimizer": discriminator_optimizer,
        "perceptual": Perceptual().to(weight.device) if config.perceptual else None,
        "group": group,
    }


def _adam(module: nn.Module, config: AutoencoderTraining) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=all(parameter.device.type in ("cpu", "cuda", "mps") for parameter in parameters),
    )


def foreground_of(
    pixels: Tensor, config: AutoencoderTraining, foreground: Tensor | None = None
) -> Tensor | None:
    """Which pixels (B, H, W) are foreground; None where nobody says.

    Raises ValueError for a `foreground` that is not (B, H, W) bool.
    """
    if foreground is None and config.background is not None:
        foreground = foreground_pixels(pixels, config.background, tolerance=config.tolerance)
    if foreground is None:
        return None
    expected = (len(pixels), *pixels.shape[2:])
    if foreground.shape != expected or foreground.dtype != torch.bool:
        raise ValueError(
            f"foreground must be {expected} bool, not {tuple(foreground.shape)} {foreground.dtype}"
        )
    return foreground


def weights_of(foreground: Tensor | None, config: AutoencoderTraining) -> Tensor | None:
    """The weights of pixels (B, H, W); None where all count alike."""
    return None if foreground is None else 1 + (config.foreground - 1) * foreground.float()


def picture_losses(
    pictures: Tensor,
    pixels: Tensor,
    state: AutoencoderState,
    config: AutoencoderTraining,
    *,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of pictures (B, 3, H, W) that came back, before their weights."""
    # Processes have more or less of what has weight: the mean of their losses is to be that of all pixels.
    total = None if weights is None else averaged(weights.sum(), state.group)
    terms = {
        "reconstruction": reconstruction_loss(
            pictures, pixels, l1=config.l1, l2=config.l2, weights=weights, total=total
        )
    }
    if state.perceptual is not None:
        terms["perceptual"] = state.perceptual(pictures, pixels)
    if config.is_adversarial(state.step):
        assert state.discriminator is not None
        # Its own gradients are of its own step.
        state.discriminator.requires_grad_(False)
        terms["adversarial"] = adversarial_loss(_judge(state.discriminator, pictures, config))
    return terms


def total(terms: dict[str, Tensor], config: AutoencoderTraining) -> Tensor:
    """The loss: the sum of terms by their weights. The reconstruction's are within it."""
    weights = {name: 1.0 if name == "reconstruction" else getattr(config, name) for name in terms}
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def learn(
    model: nn.Module,
    terms: dict[str, Tensor],
    pictures: Tensor,
    pixels: Tensor,
    state: AutoencoderState,
    config: AutoencoderTraining,
) -> dict[str, Tensor]:
    """One step of the optimizer by these terms, and one of the discriminator's; -> the figures of both.

    Raises FloatingPointError, before parameters move, where gradients are not finite.
    """
    loss = total(terms, config)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(model, state.group)
    norm = _clip(model, state.step, config)
    state.optimizer.step()
    figures = {name: term.detach() for name, term in terms.items()} | {"loss": loss.detach(), "norm": norm}
    if config.is_adversarial(state.step):
        figures["discriminator"] = _discriminator_step(pictures.detach(), pixels, state, config)
    return figures


def _discriminator_step(
    pictures: Tensor, pixels: Tensor, state: AutoencoderState, config: AutoencoderTraining
) -> Tensor:
    discriminator, optimizer = state.discriminator, state.discriminator_optimizer
    assert discriminator is not None
    assert optimizer is not None
    discriminator.requires_grad_(True)
    real, fake = (_judge(discriminator, each, config) for each in (pixels, pictures))
    loss = discriminator_loss(real, fake)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(discriminator, state.group)
    _clip(discriminator, state.step, config)
    optimizer.step()
    return loss.detach()


def _judge(discriminator: nn.Module, pictures: Tensor, config: AutoencoderTraining) -> Tensor:
    with computing(config, pictures.device):
        return discriminator(pictures)


def _clip(module: nn.Module, step: int, config: AutoencoderTraining) -> Tensor:
    """Scale gradients to a norm of `config.clip` at most; -> the norm they had."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip)
    if not norm.isfinite():
        raise FloatingPointError(
            f"gradients of step {step} are not finite: lower the learning rate {config.learning_rate}, "
            "or look for pixels that are not numbers"
        )
    return norm


def computing(config: AutoencoderTraining, device: torch.device) -> torch.autocast:
    """How the networks run: in float32, too, on a CPU that does bfloat16 badly."""
    wanted = config.bfloat16 and not cpu.widens(device, torch.bfloat16)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
