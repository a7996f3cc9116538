"""Training of the VQ tokenizer: the terms of its loss, the care of its codebook, and one step of both.

state = VQState.start(vq, config)
for pixels in batches:
    figures = vq_step(vq, pixels, state, config)
"""

from janus.training.vq.autoencoding import AutoencoderState, AutoencoderTraining, total
from janus.training.vq.codebook import (
    count_codes,
    k_means,
    merge,
    perplexity,
    revive,
    start_codebook,
    usage_entropy,
)
from janus.training.vq.discriminator import PatchDiscriminator, adversarial_loss, discriminator_loss
from janus.training.vq.objectives import (
    background_cells,
    codebook_loss,
    commitment_loss,
    entropy_loss,
    foreground_pixels,
    reconstruction_loss,
)
from janus.training.vq.perceptual import Perceptual
from janus.training.vq.reconstructions import paired_grid, reconstruction_grid
from janus.training.vq.state import VQState, VQTraining
from janus.training.vq.step import Coded, code, pixel_weights, vq_losses, vq_step
from janus.training.vq.upkeep import prepare_codebook, tend_codebook

__all__ = [
    "AutoencoderState",
    "AutoencoderTraining",
    "Coded",
    "PatchDiscriminator",
    "Perceptual",
    "VQState",
    "VQTraining",
    "adversarial_loss",
    "background_cells",
    "code",
    "codebook_loss",
    "commitment_loss",
    "count_codes",
    "discriminator_loss",
    "entropy_loss",
    "foreground_pixels",
    "k_means",
    "merge",
    "paired_grid",
    "perplexity",
    "pixel_weights",
    "prepare_codebook",
    "reconstruction_grid",
    "reconstruction_loss",
    "revive",
    "start_codebook",
    "tend_codebook",
    "total",
    "usage_entropy",
    "vq_losses",
    "vq_step",
]
