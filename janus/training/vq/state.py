"""The settings of a VQ tokenizer's training, and what changes from step to step beside the model.

K codes of width C; P latents that the codebook starts from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from janus.checks import require_number, require_whole
from janus.models.vq import VQ
from janus.training.vq.autoencoding import ABOVE_0, AutoencoderState, AutoencoderTraining, begun


@dataclass(frozen=True, kw_only=True)
class VQTraining(AutoencoderTraining):
    """How a VQ tokenizer is trained; the defaults are LlamaGen's, without what needs a second network.

    Weights of the terms: `l1`, `l2`, `perceptual`, `adversarial`, `codebook`, `commitment`, `entropy` (with
    its `temperature`). `foreground` is the weight of a pixel that differs from `background`, an 8-bit color,
    by more than `tolerance` levels, where other pixels have 1. Stages begin at steps, counted from 0: before
    `quantize_from` the decoder gets the latents as they are, and then the codebook starts as the k-means of
    the `start_latents` newest of them (None: 16 a code; 0: it stays as it is, of a checkpoint), of which
    `background_codes` entries are of background; from `discriminator_from` on there is the adversarial term
    (None: never); from `decoder_only_from` on codes stay as they are and the decoder alone learns (None:
    never), after codes with at least `merge_share` of their uses in background cells became one code (None:
    they do not). Every `revive_every` steps (None: never) codes unused since the last time restart from the
    batch's latents, those of background cells left out, and those far from all codes first if `revive_far`.
    `usage_decay` is that of the running counts of use, per step. `bfloat16` runs the networks under autocast;
    parameters and losses stay float32.
    """

    codebook: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.0
    temperature: float = 0.01
    quantize_from: int = 0
    decoder_only_from: int | None = None
    start_latents: int | None = None
    background_codes: int = 1
    revive_every: int | None = 50
    revive_far: bool = False
    merge_share: float | None = None
    usage_decay: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("temperature", self.temperature, "a number above 0", least=ABOVE_0)
        for name in ("codebook", "commitment", "entropy"):
            require_number(name, getattr(self, name), "a number of at least 0", least=0)
        require_number("usage_decay", self.usage_decay, "a number from 0 to 0.9999", least=0, most=0.9999)
        for name in ("quantize_from", "background_codes"):
            require_whole(name, getattr(self, name), least=0)
        for name in ("decoder_only_from", "start_latents", "revive_every"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), least=1 if name == "revive_every" else 0)
        if self.merge_share is not None:
            require_number("merge_share", self.merge_share, "a share above 0, up to 1", least=ABOVE_0, most=1)
        if self.decoder_only_from is not None and self.decoder_only_from < self.quantize_from:
            raise ValueError(
                f"decoder_only_from {self.decoder_only_from} is before quantize_from {self.quantize_from}: "
                "the decoder alone can learn from codes only"
            )
        if self.merge_share is not None and self.decoder_only_from is None:
            raise ValueError(
                f"merge_share {self.merge_share} has no moment: codes merge at decoder_only_from, give it too"
            )

    def quantizes(self, step: int) -> bool:
        return step >= self.quantize_from

    def trains_decoder_only(self, step: int) -> bool:
        return self.decoder_only_from is not None and step >= self.decoder_only_from


@dataclass
class VQState(AutoencoderState):
    """What a step reads and writes beside the model; `state_dict` holds all that a run needs to go on.

    `usage` and `background_usage` (K,) are running numbers of uses per step, of all cells and of background
    cells; `unused` (K,) counts the steps since a code was used; `pool` (P, C) the newest latents before the
    codebook starts, `pool_background` (P,) those of background cells.
    """

    usage: Tensor
    background_usage: Tensor
    unused: Tensor
    pool: Tensor
    pool_background: Tensor

    @classmethod
    def start(
        cls,
        vq: VQ,
        config: VQTraining,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        group: distributed.ProcessGroup | None = None,
    ) -> VQState:
        """Step 0; see `janus.training.vq.autoencoding.begun`."""
        device, codes = vq.codebook.device, vq.config.codes
        return cls(
            **begun(vq, config, optimizer, group),
            usage=torch.zeros(codes, device=device),
            background_usage=torch.zeros(codes, device=device),
            unused=torch.zeros(codes, dtype=torch.long, device=device),
            pool=torch.zeros(0, vq.config.code_width, device=device),
            pool_background=torch.zeros(0, dtype=torch.bool, device=device),
        )
