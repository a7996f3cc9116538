"""The settings of a VQ tokenizer's training, and what changes from step to step beside the model.

K codes of width C; P latents that the codebook starts from.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, distributed, nn

from janus.checks import require_number, require_whole
from janus.models.vq import VQ
from janus.training.vq.discriminator import PatchDiscriminator
from janus.training.vq.perceptual import Perceptual

ABOVE_0 = 5e-324  # the least float that is


@dataclass(frozen=True, kw_only=True)
class VQTraining:
    """How a VQ tokenizer is trained; the defaults are LlamaGen's, without what needs a second network.

    Weights of the terms: `l1`, `l2`, `perceptual`, `adversarial`, `codebook`, `commitment`, `entropy` (with
    its `temperature`). `foreground` is the weight of a pixel that differs from `background`, an 8-bit colour,
    by more than `tolerance` levels, where other pixels have 1. Stages begin at steps, counted from 0: before
    `quantise_from` the decoder gets the latents as they are, and then the codebook starts as the k-means of
    the `start_latents` newest of them (None: 16 a code; 0: it stays as it is, of a checkpoint), of which
    `background_codes` entries are of background; from `discriminator_from` on there is the adversarial term
    (None: never); from `decoder_only_from` on codes stay as they are and the decoder alone learns (None:
    never), after codes with at least `merge_share` of their uses in background cells became one code (None:
    they do not). Every `revive_every` steps (None: never) codes unused since the last time restart from the
    batch's latents, those of background cells left out. `usage_decay` is that of the running counts of use,
    per step. `bfloat16` runs the networks under autocast; parameters and losses stay float32.
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
    codebook: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.0
    temperature: float = 0.01
    background: tuple[int, int, int] | None = None
    foreground: float = 1.0
    tolerance: int = 2
    quantise_from: int = 0
    discriminator_from: int | None = None
    decoder_only_from: int | None = None
    start_latents: int | None = None
    background_codes: int = 1
    revive_every: int | None = 50
    merge_share: float | None = None
    usage_decay: float = 0.99
    discriminator_channels: int = 64
    discriminator_layers: int = 3

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip", "temperature", "foreground"):
            require_number(name, getattr(self, name), "a number above 0", least=ABOVE_0)
        for name in ("weight_decay", "l1", "l2", "perceptual", "adversarial", "codebook", "commitment"):
            require_number(name, getattr(self, name), "a number of at least 0", least=0)
        require_number("entropy", self.entropy, "a number of at least 0", least=0)
        require_number("usage_decay", self.usage_decay, "a number from 0 to 0.9999", least=0, most=0.9999)
        for name in ("seed", "tolerance", "quantise_from", "background_codes"):
            require_whole(name, getattr(self, name), least=0)
        for name in ("discriminator_from", "decoder_only_from", "start_latents", "revive_every"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), least=1 if name == "revive_every" else 0)
        if self.merge_share is not None:
            require_number("merge_share", self.merge_share, "a share above 0, up to 1", least=ABOVE_0, most=1)
        self._check_betas_and_background()
        if self.decoder_only_from is not None and self.decoder_only_from < self.quantise_from:
            raise ValueError(
                f"decoder_only_from {self.decoder_only_from} is before quantise_from {self.quantise_from}: "
                "the decoder alone can learn from codes only"
            )
        if self.merge_share is not None and self.decoder_only_from is None:
            raise ValueError(
                f"merge_share {self.merge_share} has no moment: codes merge at decoder_only_from, give it too"
            )

    def _check_betas_and_background(self) -> None:
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

    def quantises(self, step: int) -> bool:
        return step >= self.quantise_from

    def trains_decoder_only(self, step: int) -> bool:
        return self.decoder_only_from is not None and step >= self.decoder_only_from

    def is_adversarial(self, step: int) -> bool:
        return self.discriminator_from is not None and step >= self.discriminator_from


@dataclass
class VQState:
    """What a step reads and writes beside the model; `state_dict` holds all that a run needs to go on.

    `usage` and `background_usage` (K,) are running numbers of uses per step, of all cells and of background
    cells; `unused` (K,) counts the steps since a code was used; `pool` (P, C) the newest latents before the
    codebook starts, `pool_background` (P,) those of background cells.
    """

    step: int
    optimizer: torch.optim.Optimizer
    usage: Tensor
    background_usage: Tensor
    unused: Tensor
    pool: Tensor
    pool_background: Tensor
    discriminator: PatchDiscriminator | None
    discriminator_optimizer: torch.optim.Optimizer | None
    perceptual: nn.Module | None
    group: distributed.ProcessGroup | None

    @classmethod
    def start(
        cls,
        vq: VQ,
        config: VQTraining,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        group: distributed.ProcessGroup | None = None,
    ) -> VQState:
        """Step 0. The optimizer is AdamW over what requires gradients, unless the caller brings one.

        With a `group` each of its processes takes as many pictures, and gradients and counts are of all.

        The discriminator's initial weights are of `config.seed`; torch's own generator stays. Raises
        ValueError for a model that is not float32, and as `Perceptual` does where that term is on.
        """
        codebook = vq.codebook
        if codebook.dtype != torch.float32:
            raise ValueError(f"a VQ trains in float32, not {codebook.dtype}: set bfloat16 for faster steps")
        discriminator = discriminator_optimizer = None
        if config.discriminator_from is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                discriminator = PatchDiscriminator(
                    channels=config.discriminator_channels, layers=config.discriminator_layers
                ).to(codebook.device)
            discriminator_optimizer = _adam(discriminator, config)
        codes = vq.config.codes
        return cls(
            step=0,
            optimizer=optimizer or _adam(vq, config),
            usage=torch.zeros(codes, device=codebook.device),
            background_usage=torch.zeros(codes, device=codebook.device),
            unused=torch.zeros(codes, dtype=torch.long, device=codebook.device),
            pool=torch.zeros(0, vq.config.code_width, device=codebook.device),
            pool_background=torch.zeros(0, dtype=torch.bool, device=codebook.device),
            discriminator=discriminator,
            discriminator_optimizer=discriminator_optimizer,
            perceptual=Perceptual().to(codebook.device) if config.perceptual else None,
            group=group,
        )

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
                f"the state of a VQ's training differs in {', '.join(sorted(wanted ^ set(values)))}: "
                "go on with the settings it was saved under"
            )
        for name, value in values.items():
            own = getattr(self, name)
            if hasattr(own, "load_state_dict"):
                own.load_state_dict(value)
            else:
                setattr(self, name, value.to(own.device) if isinstance(own, Tensor) else value)


def _adam(module: nn.Module, config: VQTraining) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=all(parameter.device.type in ("cpu", "cuda", "mps") for parameter in parameters),
    )
