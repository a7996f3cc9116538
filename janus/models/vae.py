"""The SDXL autoencoder: a picture to the distribution of its latents, and latents to a picture.

B pictures, C channels, (h, w) the grid of latents; `factor` pixels per latent along each side. Levels are
numbered as in the checkpoint: the encoder's from the finest, the decoder's from the coarsest. Parts are named
as the VQ tokenizer's, which has the same shape, so that its strips serve here too. Source: diffusers'
AutoencoderKL; Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from janus import cpu
from janus.config import MOST_LAYERS, MOST_LEVELS
from janus.models import vq_strips
from janus.models.vq import Downsample, Upsample

LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE = -30.0, 20.0  # beyond them the original's distribution ends


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """An AutoencoderKL: `channels` of each level from the finest on, and groups of its norms.

    What a flow or a diffusion works on is the latents times `scaling_factor`. `force_upcast`: in float16 the
    activations leave its range, and are computed in float32. `extra` is the `config.json` that this was read
    from, kept for what it says to others; it takes no part in equality.
    """

    channels: tuple[int, ...]
    residual_blocks: int
    latent_channels: int
    groups: int
    scaling_factor: float
    force_upcast: bool
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.channels) <= MOST_LEVELS:
            raise ValueError(f"vae: there must be from 1 to {MOST_LEVELS} levels, not {len(self.channels)}")
        if not 0 < self.residual_blocks <= MOST_LAYERS:
            raise ValueError(
                f"vae: residual_blocks must be from 1 to {MOST_LAYERS}, not {self.residual_blocks}"
            )
        if self.latent_channels <= 0 or self.groups <= 0:
            raise ValueError(
                "vae: latent_channels and groups must be positive, "
                f"not {self.latent_channels} and {self.groups}"
            )
        if min(self.channels) <= 0 or any(channels % self.groups for channels in self.channels):
            raise ValueError(
                f"vae: channels must be multiples of {self.groups} (the groups of its norms), "
                f"not {self.channels}"
            )
        if not 0 < self.scaling_factor < math.inf:
            raise ValueError(f"vae: scaling_factor must be a positive number, not {self.scaling_factor}")

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.channels) - 1)


SDXL = VAEConfig(
    channels=(128, 256, 512, 512),
    residual_blocks=2,
    latent_channels=4,
    groups=32,
    scaling_factor=0.13025,
    force_upcast=True,
)


@dataclass(frozen=True)
class LatentDistribution:
    """Independent normal distributions of latents, (B, C, h, w) each, before any scaling."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor | torch.Generator) -> Tensor:
        """(B, C, h, w): by standard normal noise of that shape, or by that of a generator on its device."""
        if isinstance(noise, torch.Generator):
            noise = torch.randn(
                self.mean.shape, generator=noise, device=self.mean.device, dtype=self.mean.dtype
            )
        if noise.shape != self.mean.shape:
            raise ValueError(f"noise must be {tuple(self.mean.shape)}, not {tuple(noise.shape)}")
        return self.mean + torch.exp(0.5 * self.log_variance) * noise.to(self.mean)


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, beside the input, or 1 x 1 of it where widths differ."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(inner)))


class AttentionBlock(nn.Module):
    """One head over all positions of the grid."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, h * w, C)
        mixed = F.scaled_dot_product_attention(self.q(positions), self.k(positions), self.v(positions))
        return x + self.out(mixed[:, 0]).transpose(1, 2).reshape(x.shape)


class Level(nn.Module):
    """The residual blocks of one resolution, which lead through these widths, and the way to the next one."""

    def __init__(self, widths: list[int], groups: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResidualBlock(inputs, outputs, groups) for inputs, outputs in pairwise(widths)
        )
        self.attn = nn.ModuleList(nn.Identity() for _ in self.res)  # the VQ tokenizer has some here
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res:
            x = block(x)
        return self.resample(x)


def _levels(
    first: int, channels: list[int], blocks: int, groups: int, resample: type[nn.Module]
) -> nn.Module:
    """Levels of so many blocks each; all but the last end with a `resample`."""
    inputs = [first, *channels]
    last = len(channels) - 1
    return nn.Sequential(
        *(
            Level([inputs[level], *[outputs] * blocks], groups, None if level == last else resample(outputs))
            for level, outputs in enumerate(channels)
        )
    )


def _middle(channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels, groups),
        AttentionBlock(channels, groups),
        ResidualBlock(channels, channels, groups),
    )


class Encoder(nn.Module):
    """(B, 3, factor * h, factor * w) -> (B, 2 * latent_channels, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = list(config.channels), config.groups
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.levels = _levels(channels[0], channels, config.residual_blocks, groups, Downsample)
        self.mid = _middle(channels[-1], groups)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        if vq_strips.serves(pixels):
            return vq_strips.encode(self, pixels)  # type: ignore[arg-type]  # the same parts
        x = self.mid(self.levels(self.conv_in(pixels)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, latent_channels, h, w) -> (B, 3, factor * h, factor * w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = list(reversed(config.channels)), config.groups
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid = _middle(channels[0], groups)
        self.levels = _levels(channels[0], channels, config.residual_blocks + 1, groups, Upsample)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if vq_strips.serves(x):
            return vq_strips.decode(self, x)  # type: ignore[arg-type]  # the same parts
        x = self.levels(self.mid(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    """Encoder and decoder, of latents as they are: `config.scaling_factor` is for the caller to apply.

    Weights may be of any float dtype. In float16, unless the config says that it does not overflow, and on
    CPUs that convolve no 16 bits well, the computation is in float32, and its result of the weights' dtype.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> LatentDistribution:
        """(B, 3, H, W) in [-1, 1] -> the distribution of the latents (B, C, H / factor, W / factor)."""
        factor = self.config.factor
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % factor or pixels.shape[3] % factor:
            raise ValueError(
                f"pixels must be (B, 3, H, W) with H and W multiples of {factor}, not {tuple(pixels.shape)}"
            )
        mean, log_variance = self._through(pixels, self.encoder, self.quant_conv).chunk(2, dim=1)
        return LatentDistribution(mean, log_variance.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> pixels (B, 3, factor * h, factor * w), nominally in [-1, 1] but not clipped."""
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"latents must be (B, {self.config.latent_channels}, h, w), not {tuple(latents.shape)}"
            )
        return self._through(latents, self.post_quant_conv, self.decoder)

    @property
    def dtype(self) -> torch.dtype:
        return self.post_quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.post_quant_conv.weight.device

    def _through(self, x: Tensor, *parts: nn.Module) -> Tensor:
        """The parts one after another; where their own dtype does not serve, by their weights in float32."""
        dtype = self.dtype
        overflows = dtype == torch.float16 and self.config.force_upcast
        # Strips widen for themselves, and take less memory.
        slow = cpu.widens(self.device, dtype) and not vq_strips.serves(x.to(dtype))
        if not overflows and not slow:
            x = x.to(dtype)
            for part in parts:
                x = part(x)
            return x
        x = x.float()
        for part in parts:
            wide = {name: weight.float() for name, weight in part.named_parameters()}
            x = functional_call(part, wide, (x,))
        return x.to(dtype)
