"""Training of the autoencoder that JanusFlow's latents come from: its terms, one step, and its scale.

B pictures of (H, W) pixels, (C, h, w) their latents. Source: Rombach et al., "High-resolution image synthesis
with latent diffusion models" (2022).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from janus.checks import require_number
from janus.models.vae import VAE, LatentDistribution
from janus.training.data.order import hashed
from janus.training.vq.autoencoding import (
    AutoencoderState,
    AutoencoderTraining,
    begun,
    computing,
    foreground_of,
    learn,
    picture_losses,
    weights_of,
)


@dataclass(frozen=True, kw_only=True)
class VAETraining(AutoencoderTraining):
    """How an autoencoder of latents is trained.

    Weights of the terms: `l1`, `l2`, `perceptual`, `adversarial` and `kl`. `foreground` is the weight of a
    pixel that differs from `background`, an 8-bit color, by more than `tolerance` levels, where other pixels
    have 1. From step `discriminator_from` on, counted from 0, there is the adversarial term (None: never), of
    a discriminator with `discriminator_channels` and `discriminator_layers`. `bfloat16` runs the networks
    under autocast; parameters and losses stay float32.
    """

    kl: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("kl", self.kl, "a number of at least 0", least=0)


@dataclass
class VAEState(AutoencoderState):
    """See `AutoencoderState`: latents need no care."""

    @classmethod
    def start(
        cls,
        vae: VAE,
        config: VAETraining,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        group: distributed.ProcessGroup | None = None,
    ) -> VAEState:
        """Step 0; see `janus.training.vq.autoencoding.begun`."""
        return cls(**begun(vae, config, optimizer, group))


@dataclass(frozen=True)
class Returned:
    """A batch on its way through the autoencoder, in float32: its distribution, and pictures (B, 3, H, W)."""

    distribution: LatentDistribution
    pictures: Tensor


def vae_step(
    vae: VAE, pixels: Tensor, state: VAEState, config: VAETraining, *, foreground: Tensor | None = None
) -> dict[str, Tensor]:
    """Learn from pixels (B, 3, H, W) in [-1, 1]; -> each term before its weight, `loss` and other figures.

    As `vq_step`, without a codebook.
    """
    weights = weights_of(foreground_of(pixels, config, foreground), config)
    returned = there_and_back(vae, pixels, state, config)
    terms = vae_losses(returned, pixels, state, config, weights=weights)
    figures = learn(vae, terms, returned.pictures, pixels, state, config)
    figures["deviation"] = returned.distribution.mean.detach().std()
    state.step += 1
    return figures


def there_and_back(vae: VAE, pixels: Tensor, state: VAEState, config: VAETraining) -> Returned:
    """Pixels through the encoder, a sample of the latents, and the decoder.

    The sample is a function of seed, step and process, so that a run that is continued draws what it would
    have drawn.
    """
    with computing(config, pixels.device):
        found = vae.encode(pixels)
        distribution = LatentDistribution(found.mean.float(), found.log_variance.float())
        pictures = vae.decode(distribution.sample(_generator(state, config, pixels.device))).float()
    return Returned(distribution, pictures)


def vae_losses(
    returned: Returned,
    pixels: Tensor,
    state: VAEState,
    config: VAETraining,
    *,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of this step before their weights; `weights` (B, H, W) are the pixels'."""
    terms = picture_losses(returned.pictures, pixels, state, config, weights=weights)
    return terms | {"kl": divergence(returned.distribution)}


def divergence(distribution: LatentDistribution) -> Tensor:
    """That of Kullback and Leibler from the standard normal distribution: a mean over all latents, in nats.

    The reconstruction is a mean, too. Where both are sums over a picture, as in the source, the same weight
    is this one times its numbers of pixels and over those of latents.
    """
    mean, log_variance = distribution.mean, distribution.log_variance
    return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2


@torch.no_grad()
def scaled(vae: VAE, batches: Iterable[Tensor]) -> None:
    """Set the scale, in place, by which latents of these pictures (B, 3, H, W) have a deviation of 1."""
    found = [vae.encode(pixels) for pixels in batches]
    mean = torch.cat([each.mean.cpu().double().flatten() for each in found])
    within = torch.cat([each.log_variance.cpu().double().exp().flatten() for each in found])
    deviation = float((mean.var() + within.mean()).sqrt())
    vae.config = replace(vae.config, scaling_factor=1 / deviation)


def _generator(state: VAEState, config: VAETraining, device: torch.device) -> torch.Generator:
    rank = 0 if state.group is None else state.group.rank()
    seed = hashed("latents", config.seed, state.step, rank) >> 1
    return torch.Generator(device=device).manual_seed(seed)
