"""The shallow U-ViT of JanusFlow: a convolutional encoder and decoder around the language model.

Both are a few ConvNeXt blocks on a grid, and the time modulates them. Sources: Hoogeboom et al., "simple
diffusion" (2023) for the U-ViT; Woo et al., "ConvNeXt V2" (2023) for the block and its global response norm;
Perez et al., "FiLM" (2018) for the modulation.

B rows, h and w the sides of the grid, C channels, D width of the time's embedding.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from janus import cpu
from janus.config import LATENT_PATCH, UViTConfig
from janus.models.llama import RMSNorm

MLP_RATIO = 4
KERNEL = 7  # of the depthwise convolutions
LONGEST_PERIOD = 10000.0
GRN_EPS = 1e-6


def time_features(t: Tensor, width: int) -> Tensor:
    """(B,) times -> (B, width) float32: cosines, then sines, of frequencies from 1 down to nearly 1/10000."""
    numbers = torch.arange(width // 2, dtype=torch.float32, device=t.device)
    # In the original's order of rounding: a time of 1000 multiplies what the last bits differ by.
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * numbers / (width // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """(B, C, h, w) through a convolution: in float32 where a CPU has none of 16 bits."""
    if not cpu.widens(x.device, x.dtype):
        return conv(x)
    weight, bias = conv.weight.float(), None if conv.bias is None else conv.bias.float()
    wide = F.conv2d(x.float(), weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return wide.to(x.dtype)


class TimeEmbedding(nn.Module):
    """(B,) times in [0, 1000] -> (B, D), in the dtype that is named."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.linear_1 = nn.Linear(features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        features = time_features(t, self.features).to(dtype)
        return self.linear_2(F.silu(self.linear_1(features)))


class GlobalResponseNorm(nn.Module):
    """Scales each channel of a grid (B, h, w, C) by how strongly it answers, against the mean of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        relative = response / (response.mean(dim=-1, keepdim=True) + GRN_EPS)
        return self.bias + (self.weight * relative + 1) * x


class ConvNeXtBlock(nn.Module):
    """(B, C, h, w) and the time (B, D) -> (B, C, h, w). The time modulates the sum, behind the residual."""

    def __init__(self, channels: int, time_width: int, norm_eps: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = RMSNorm(channels, norm_eps)
        self.expand = nn.Linear(channels, MLP_RATIO * channels)
        self.response_norm = GlobalResponseNorm(MLP_RATIO * channels)
        self.contract = nn.Linear(MLP_RATIO * channels, channels)
        self.modulation = nn.Linear(time_width, 2 * channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.norm(rearrange(convolve(self.depthwise, x), "B C h w -> B h w C"))
        y = self.contract(self.response_norm(F.gelu(self.expand(y))))
        y = x + rearrange(y, "B h w C -> B C h w")
        scale, shift = self.modulation(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        return y * (1 + scale) + shift


class UViTEncoder(nn.Module):
    """Latents (B, c, h, w) and (B,) times -> features (B, C, h/2, w/2) and the time's embedding (B, D)."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.time = TimeEmbedding(config.width, config.time_width)
        self.in_conv = nn.Conv2d(
            config.latent_channels,
            config.width,
            config.kernel_size,
            stride=LATENT_PATCH,
            padding=config.padding,
        )
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.width, config.time_width, config.encoder_norm_eps)
            for _ in range(config.encoder_blocks)
        )

    def forward(self, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        time = self.time(t, latents.dtype)
        x = convolve(self.in_conv, latents)
        for block in self.blocks:
            x = block(x, time)
        return x, time


class UViTDecoder(nn.Module):
    """What the language model made of a grid (B, E, h/2, w/2), the encoder's features of it (B, C, h/2, w/2)
    and the time (B, D) -> velocity (B, c, h, w).
    """

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        channels = config.decoder_width + config.width
        self.input_norm = RMSNorm(config.decoder_width, config.decoder_norm_eps)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(channels, config.time_width, config.decoder_norm_eps)
            for _ in range(config.decoder_blocks)
        )
        self.out_norm = RMSNorm(channels, config.decoder_norm_eps)
        self.out_conv = nn.Conv2d(channels, LATENT_PATCH**2 * config.latent_channels, 1)

    def forward(self, x: Tensor, features: Tensor, time: Tensor) -> Tensor:
        x = torch.cat((_over_channels(self.input_norm, x), features), dim=1)
        for block in self.blocks:
            x = block(x, time)
        patches = convolve(self.out_conv, _over_channels(self.out_norm, x))
        # What pixel_shuffle does, which has no gradient of an empty batch.
        return rearrange(patches, "B (c p q) h w -> B c (h p) (w q)", p=LATENT_PATCH, q=LATENT_PATCH)


def _over_channels(norm: RMSNorm, x: Tensor) -> Tensor:
    return rearrange(norm(rearrange(x, "B C h w -> B h w C")), "B h w C -> B C h w")
