"""JanusFlow's losses: the velocity of latents on their way from noise, their likeness to what is understood.

B rows of L positions, D width; M pictures that are drawn, (c, h, w) their latents, T = h/2 * w/2 the tokens
of them; E SigLIP's width. Time runs from 0, noise, to 1. Sources: Ma et al., "JanusFlow" (2024), for the
losses; Esser et al., "Scaling rectified flow transformers for high-resolution image synthesis" (2024), for
the times; Yu et al., "Representation alignment for generation" (2024), for the alignment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus.config import LATENT_PATCH, JanusFlowConfig
from janus.inference.flow import normal_noise
from janus.models.janusflow import JanusFlow
from janus.models.vae import VAE
from janus.training.data.outline import IGNORE
from janus.training.data.packing import Batch
from janus.training.objectives import Sums, cross_entropy, filled
from janus.training.parts import ALIGNMENT
from janus.training.recipe.learning import FlowLearning
from janus.weights.processor_config import ProcessorConfig

ENCODED = 8  # pictures that the autoencoder encodes at once
NOISE, TIME, SAMPLE = range(3)  # what a seed's numbers are for: each has a number of its own


@dataclass(frozen=True)
class Noised:
    """Latents (M, c, h, w) at their times (M,) in [0, 1], and the velocity (M, c, h, w) that leads on."""

    latents: Tensor
    times: Tensor
    velocity: Tensor


class Alignment(nn.Module):
    """The projector of the language model's states after so many blocks, (..., D) -> (..., E).

    Three linear layers with SiLU between them. It learns with the model and is no part of a checkpoint.
    """

    def __init__(self, config: JanusFlowConfig, after: int) -> None:
        super().__init__()
        width = config.language.width
        self.after = after
        self.layers = nn.Sequential(
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, config.vision.width),
        )

    def forward(self, states: Tensor) -> Tensor:
        return self.layers(states)


def attach_alignment(model: JanusFlow, after: int) -> None:
    """Give a model a projector, in place; `remove_alignment` takes it away again."""
    model.add_module(ALIGNMENT, Alignment(model.config, after).to(model.device, model.dtype))


def add_alignment(model: JanusFlow, after: int, *, tokens: int | None, seed: int = 0) -> None:
    """As `attach_alignment`, random by the seed.

    `tokens` are those of a picture that is drawn, if any are. Raises ValueError where the model has fewer
    blocks, or as many features of a picture as tokens it has not.
    """
    config = model.config
    if after > config.language.layers:
        raise ValueError(
            f"flow.aligned_after is {after}, and the language model has {config.language.layers} blocks: "
            "name one of them"
        )
    if tokens is not None and tokens != config.vision.tokens:
        raise ValueError(
            f"loss.alignment compares {config.vision.tokens} features of a picture with {tokens} tokens of "
            "its latents, one by one: give it the weight 0, or sizes that agree"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attach_alignment(model, after)


def alignment_of(model: nn.Module) -> Alignment | None:
    """The projector of a model that has one."""
    found = getattr(model, ALIGNMENT, None)
    assert found is None or isinstance(found, Alignment)
    return found


@torch.no_grad()
def encode_latents(vae: VAE, targets: Tensor, seeds: Tensor) -> Tensor:
    """Pictures to be drawn (M, 3, H, W) in [-1, 1] -> latents (M, c, h, w) of the flow, in float32.

    They are drawn from the autoencoder's distribution, by the pictures' seeds (M,), and scaled; few pictures
    at once, which in float32 take more memory than all that learns from them.
    """
    found = []
    for some, own in zip(targets.split(ENCODED), seeds.split(ENCODED), strict=True):
        with torch.autocast(targets.device.type, enabled=False):
            distribution = vae.encode(some)
        noise = _normal(own, SAMPLE, distribution.mean.shape[1:])
        found.append(distribution.sample(noise.to(targets.device)).float())
    return torch.cat(found) * vae.config.scaling_factor


def with_latents(batch: Batch, vae: VAE | None) -> Batch:
    """The batch with the latents of its targets, if it has any; then there must be an autoencoder."""
    if not len(batch.targets):
        return batch
    assert vae is not None  # a loader without geometry would have raised
    return batch.with_latents(encode_latents(vae, batch.targets, batch.seeds))


def noised(latents: Tensor, seeds: Tensor, settings: FlowLearning) -> Noised:
    """Latents (M, c, h, w) on the straight way from noise: all random numbers are functions of seeds (M,).

    Times are logit-normal.
    """
    noise = _normal(seeds, NOISE, latents.shape[1:]).to(latents)
    logits = settings.time_mean + settings.time_deviation * _normal(seeds, TIME, (1,))[:, 0]
    times = logits.sigmoid().to(latents)
    share = times[:, None, None, None]
    return Noised(share * latents + (1 - share) * noise, times, latents - noise)


def _normal(seeds: Tensor, number: int, shape: tuple[int, ...]) -> Tensor:
    """(M, *shape) float32 on the CPU, standard normal."""
    own = seeds.tolist()
    if not own:
        return torch.zeros(0, *shape)
    return normal_noise(own, [number] * len(own), math.prod(shape)).unflatten(1, shape)


def as_seen(targets: Tensor, config: ProcessorConfig) -> Tensor:
    """Pictures (M, 3, H, W) in [-1, 1] as the processor would give them to the understanding encoder."""
    half = 127.5 * config.rescale_factor
    mean, std = (0.0,) * 3, (1.0,) * 3
    if config.do_normalize:
        mean, std = config.image_mean or mean, config.image_std or std
    center, scale = (targets.new_tensor(each)[:, None, None] for each in (mean, std))
    return targets * (half / scale) + (half - center) / scale


def flow_sums(model: JanusFlow, batch: Batch, drawn: Noised, processor: ProcessorConfig) -> Sums:
    """The losses of a batch whose latents have been noised.

    Of each token of a picture: the mean of its squared errors of velocity, and, if the model has a projector,
    the cosine between its states in the language model and the picture's feature at its place, negative. The
    feature has no gradient. Every part of the model has its turn, of an empty batch if need be.
    """
    embedded = model.embed_latents(drawn.latents, 1000 * drawn.times)
    embeds = filled(model, batch, embedded.tokens)
    alignment = alignment_of(model)
    hidden, passed = model.language.through_documents(
        embeds,
        batch.document,
        positions=batch.positions,
        after=0 if alignment is None else alignment.after,
    )
    words, tokens = batch.labels != IGNORE, embedded.tokens.shape[1] - 1
    own = hidden[batch.code_labels_mask].unflatten(0, (-1, tokens))
    velocity = model.decode_velocity(own, embedded).float()
    errors = (velocity - drawn.velocity).square().mean(dim=(1, 2, 3)).sum() * tokens
    text = cross_entropy(model.text_logits(hidden[words]), batch.labels[words])
    if alignment is None:
        return Sums(text, errors, torch.zeros_like(errors))
    with torch.no_grad():
        seen = as_seen(batch.targets, processor) if len(batch.targets) else batch.pixels[:0]
        features = model.vision(seen.to(model.dtype)).flatten(0, 1).float()
    states = alignment(passed[batch.code_labels_mask]).float()
    return Sums(text, errors, -F.cosine_similarity(states, features, dim=-1).sum())


class FlowObjective(nn.Module):
    """As `Objective`, of a JanusFlow and batches that have their latents; -> text, flow, alignment."""

    def __init__(self, model: JanusFlow, settings: FlowLearning, processor: ProcessorConfig) -> None:
        super().__init__()
        self.model, self.settings, self.processor = model, settings, processor

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        latents = batch.latents
        if latents is None:
            channels = self.model.config.uvit.latent_channels
            latents = batch.pixels.new_zeros(0, channels, LATENT_PATCH, LATENT_PATCH)
        drawn = noised(latents, batch.seeds, self.settings)
        found = flow_sums(self.model, batch, drawn, self.processor)
        assert found.alignment is not None
        return found.text, found.picture, found.alignment
