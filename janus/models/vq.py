"""The VQ tokenizer: a picture to a grid of codes and back.

B pictures, C channels, h and w the grid of codes; `factor` pixels per code along each side. Levels are
numbered as in the checkpoint: the encoder's from the finest, the decoder's from the coarsest. Source: the
original's vq_model.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus.config import VQConfig
from janus.kernels.codebook import lookup, nearest_code
from janus.models import vq_strips


def swish(x: Tensor) -> Tensor:
    """As the original spells it: `F.silu` rounds differently, and 8-bit pictures show it."""
    return x * torch.sigmoid(x)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, beside the input, or 1 x 1 of it where widths differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(swish(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(swish(self.norm2(inner)))


class AttentionBlock(nn.Module):
    """One head over all positions of the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normalized = self.norm(x)
        q, k, v = (conv(normalized).flatten(2) for conv in (self.q, self.k, self.v))  # (B, C, N), N = h * w
        weights = (
            torch.bmm(q.transpose(1, 2), k) * q.shape[1] ** -0.5
        )  # (B, N, N), small at the coarsest level
        mixed = torch.bmm(v, weights.softmax(dim=2).transpose(1, 2))
        return x + self.proj_out(mixed.view_as(x))


class Downsample(nn.Module):
    """Half the size. Pads on the right and below only, as the released weights were trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size, by the nearest neighbor, in the tensor's own dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, attention after each if asked, and the way to the next one."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, attention: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResidualBlock(outputs if block else inputs, outputs) for block in range(blocks)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(outputs) if attention else nn.Identity() for _ in range(blocks)
        )
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.res, self.attn, strict=True):
            x = attention(block(x))
        return self.resample(x)


def middle(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels)
    )


class Encoder(nn.Module):
    """(B, 3, factor * h, factor * w) -> (B, latent_channels, h, w)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.encoder_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.levels = nn.Sequential(
            *(
                Level(
                    inputs,
                    outputs,
                    config.residual_blocks,
                    attention=level == last,
                    resample=None if level == last else Downsample(outputs),
                )
                for level, (inputs, outputs) in enumerate(
                    zip([config.channels, *widths], widths, strict=False)
                )
            )
        )
        self.mid = middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        if vq_strips.serves(pixels):
            return vq_strips.encode(self, pixels)
        x = self.mid(self.levels(self.conv_in(pixels)))
        return self.conv_out(swish(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, latent_channels, h, w) -> (B, 3, factor * h, factor * w)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.decoder_multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0])
        self.levels = nn.Sequential(
            *(
                Level(
                    inputs,
                    outputs,
                    config.residual_blocks + 1,
                    attention=level == 0,
                    resample=None if level == last else Upsample(outputs),
                )
                for level, (inputs, outputs) in enumerate(zip([widths[0], *widths], widths, strict=False))
            )
        )
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if vq_strips.serves(x):
            return vq_strips.decode(self, x)
        x = self.levels(self.mid(self.conv_in(x)))
        return self.conv_out(swish(self.norm_out(x)))


class VQ(nn.Module):
    """Encoder, codebook and decoder.

    Codes are compared and looked up at unit length; the stored rows need not be.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_width, 1)
        self.codebook = nn.Parameter(torch.empty(config.codes, config.code_width).uniform_(-1, 1))
        self.post_quant_conv = nn.Conv2d(config.code_width, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> codes (B, H / factor, W / factor), int64."""
        return self.nearest(self.latents(pixels))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> pixels (B, 3, factor * h, factor * w), nominally in [-1, 1] but not clipped."""
        return self.decode_latents(self.lookup(codes))

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, code_width, H / factor, W / factor), before any normalization."""
        factor = self.config.factor
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % factor or pixels.shape[3] % factor:
            raise ValueError(
                f"pixels must be (B, 3, H, W) with H and W multiples of {factor}, not {tuple(pixels.shape)}"
            )
        return self.quant_conv(self.encoder(pixels.to(self.codebook.dtype)))

    def nearest(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> the codes (B, h, w) whose entries are nearest, both at unit length, in float32."""
        return nearest_code(latents, self.codebook)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> the nearest codes' entries in the same shape, and the codes (B, h, w).

        Gradients pass straight through to the (normalized) latents.
        """
        normalized, codes = F.normalize(latents, dim=1), self.nearest(latents)
        return normalized + (self.lookup(codes) - normalized).detach(), codes

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) of any integer dtype -> unit-length entries (B, code_width, h, w)."""
        if codes.ndim != 3 or codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes must be (B, h, w) integers, not {tuple(codes.shape)} {codes.dtype}")
        codes = codes.long()  # some integers cannot even be compared
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.config.codes):
            raise ValueError(
                f"codes run from {codes.min()} to {codes.max()}, of a codebook of {self.config.codes}"
            )
        return lookup(codes, self.codebook)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Entries (B, code_width, h, w) -> pixels (B, 3, factor * h, factor * w)."""
        return self.decoder(self.post_quant_conv(latents))
