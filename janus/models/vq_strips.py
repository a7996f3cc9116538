"""The VQ tokenizer's encoder and decoder on a CPU in half precision: the same results in fewer passes.

A picture's largest activations fit no cache, and every new tensor of their size is memory that the system
first has to clear. So norm, activation and convolution are taken together, strip by strip of rows, channels
last, and activations that are done with are written over; and the convolution of an enlarged picture is
computed on the small one. Norm and activation stay in float32 between one rounding and the next, so the
result is no further from float32's than that of the plain modules, which say what is computed.

B pictures, C channels, (h, w) positions; all but `encode` and `decode` take one picture, (1, C, h, w).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus import cpu

if TYPE_CHECKING:
    from janus.models.vq import Decoder, Encoder, ResidualBlock

    Pairs = Iterable[tuple[ResidualBlock, nn.Module]]  # each with the attention that follows it, or nothing

STRIP = 2 << 20  # bytes of a strip: with its float32 copy and its convolution it stays in a shared cache


def serves(x: Tensor) -> bool:
    """Whether this input is taken in strips: not float32, to round as the original, nor with gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def encode(encoder: Encoder, pixels: Tensor) -> Tensor:
    """(B, 3, factor * h, factor * w) -> (B, latent_channels, h, w), a picture at a time."""
    return _one_by_one(_encode, encoder, pixels)


def decode(decoder: Decoder, latents: Tensor) -> Tensor:
    """(B, latent_channels, h, w) -> (B, 3, factor * h, factor * w), a picture at a time."""
    return _one_by_one(_decode, decoder, latents)


def _one_by_one(function: Callable[[Any, Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """In float32 where the CPU convolves no 16 bits: the copy of the weights is little beside the work."""
    wide = cpu.widens(x.device, x.dtype)
    if wide:
        module = copy.deepcopy(module).float()
    return torch.cat([function(module, part.float() if wide else part) for part in x.split(1)]).to(x.dtype)


def _encode(encoder: Encoder, pixels: Tensor) -> Tensor:
    x = encoder.conv_in(_channels_last(pixels))
    for level in encoder.levels:
        x = _level(level, x, _downsample)
    x = _middle(encoder.mid, x)
    return _norm_swish_conv(x, encoder.norm_out, encoder.conv_out).contiguous()


def _decode(decoder: Decoder, latents: Tensor) -> Tensor:
    x = _middle(decoder.mid, decoder.conv_in(_channels_last(latents)))
    for level in decoder.levels:
        x = _level(level, x, _upsample)
    return _norm_swish_conv(x, decoder.norm_out, decoder.conv_out).contiguous()


def _level(level: Any, x: Tensor, resample: Callable[[Tensor, nn.Conv2d], Tensor]) -> Tensor:
    x = _blocks(zip(level.res, level.attn, strict=True), x)
    return x if isinstance(level.resample, nn.Identity) else resample(x, level.resample.conv)


def _middle(middle: Any, x: Tensor) -> Tensor:
    first, attention, last = middle
    return _blocks([(first, attention), (last, nn.Identity())], x)


def _blocks(pairs: Pairs, x: Tensor) -> Tensor:
    """Residual blocks, each with what follows it. Overwrites x."""
    inner = None
    for block, attention in pairs:
        inner = _norm_swish_conv(x, block.norm1, block.conv1, into=inner)
        x = _norm_swish_conv(inner, block.norm2, block.conv2, onto=block.nin_shortcut(x))
        x = _channels_last(attention(x))  # at the coarsest level only: small, and taken whole
    return x


def _norm_swish_conv(
    x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d, *, into: Tensor | None = None, onto: Tensor | None = None
) -> Tensor:
    """The 3x3 convolution of the activated norm of x: written into a tensor, added onto one, or a new one."""
    _, _, height, width = x.shape
    out = into if onto is None else onto
    if out is None:
        out = _empty(x, conv.out_channels, height, width)
    scale, shift = _scale_and_shift(x, norm)
    for top, bottom in _strips(x):
        above, below = min(top, 1), min(height - bottom, 1)  # the neighboring rows that there are
        strip = x[:, :, top - above : bottom + below].to(torch.float32, copy=True)
        active = F.silu(torch.addcmul(shift, strip, scale, out=strip), inplace=True)
        result = _conv(active.to(x.dtype), conv.weight, conv.bias, above, below)
        if onto is None:
            out[:, :, top:bottom] = result
        else:
            out[:, :, top:bottom] += result
    return out


def _scale_and_shift(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """The group norm of x as a factor and a summand of each channel, (C, 1, 1) in float32."""
    _, channels, height, width = x.shape
    groups, size = norm.num_groups, channels // norm.num_groups
    weight, bias = norm.weight.float(), norm.bias.float()  # float32, so that the moments are
    shares, means, rates = [], [], []
    for top, bottom in _strips(x):
        # For the sake of its moments: torch has no faster way to sums and squares of channels last.
        _, mean, rate = torch.native_group_norm(
            x[:, :, top:bottom], weight, bias, 1, channels, (bottom - top) * width, groups, 0.0
        )
        shares.append((bottom - top) / height)
        means.append(mean)
        rates.append(rate)
    share, each_mean, each_variance = torch.tensor(shares), torch.cat(means), torch.cat(rates) ** -2
    mean = share @ each_mean
    rate = (share @ (each_variance + (each_mean - mean) ** 2) + norm.eps).rsqrt()
    scale = weight * rate.repeat_interleave(size)
    shift = bias - mean.repeat_interleave(size) * scale
    return scale[:, None, None], shift[:, None, None]


def _upsample(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution of x enlarged, with 4/9 of its multiplications.

    The kernel's 3x3 pixels of the enlarged picture are of 2x2 of the small one, so its weights of the same
    pixel are summed: for each parity of the row and of the column, a 2x2 kernel.
    """
    _, _, height, width = x.shape
    channels = conv.out_channels
    rows = _halves(conv.weight.float(), 2)
    weight = torch.cat([kernel for half in rows for kernel in _halves(half, 3)]).to(x.dtype)
    weight, bias = _channels_last(weight), None if conv.bias is None else conv.bias.repeat(4)
    out = _empty(x, channels, 2 * height, 2 * width)
    for top, bottom in _strips(x):
        above, below = min(top, 1), min(height - bottom, 1)
        # (1, 2, 2, C, bottom - top + 1, w + 1): the kernels' results wherever a 2x2 window touches the strip
        result = _conv(x[:, :, top - above : bottom + below], weight, bias, above, below)
        result = result.unflatten(1, (2, 2, channels))
        for row in range(2):
            for column in range(2):
                part = result[:, row, column, :, row : row + bottom - top, column : column + width]
                out[:, :, 2 * top + row : 2 * bottom : 2, column::2] = part
    return out


def _halves(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three weights along one side as the two of an even row (or column) and the two of an odd one."""
    first, second, third = weight.unbind(dim)
    return torch.stack((first, second + third), dim), torch.stack((first + second, third), dim)


def _downsample(x: Tensor, conv: nn.Conv2d) -> Tensor:
    _, _, height, width = x.shape
    out = _empty(x, conv.out_channels, height // 2, width // 2)
    for top, bottom in _strips(out):
        # On the right and below; below an inner strip no kernel reaches the row.
        padded = F.pad(x[:, :, 2 * top : 2 * bottom + 1], (0, 1, 0, 1))
        out[:, :, top:bottom] = F.conv2d(padded, conv.weight, conv.bias, stride=2)
    return out


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, above: int, below: int) -> Tensor:
    """A convolution padded by 1 of a strip that has a neighboring row above and below it, or the edge."""
    if above and below:
        return F.conv2d(x, weight, bias, padding=(0, 1))
    result = F.conv2d(x, weight, bias, padding=1)  # torch pads both ends or neither
    return result[:, :, above : result.shape[2] - below]


def _strips(x: Tensor) -> Iterator[tuple[int, int]]:
    """The first row of each strip and the row after its last."""
    _, channels, height, width = x.shape
    count = min(height, -(-channels * height * width * x.itemsize // STRIP))
    return pairwise(height * number // count for number in range(count + 1))


def _empty(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return torch.empty(1, channels, height, width, dtype=x.dtype, memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
