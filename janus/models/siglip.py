"""SigLIP's vision tower as the original runs it: the patch features, without the pooling head.

N pictures, T patches in reading order, D width, H heads.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, empty, nn

from janus import cpu
from janus.config import VisionConfig
from janus.kernels.attention import attention


class Attention(nn.Module):
    """Bidirectional attention among the patches of one picture."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "N T (three H d) -> three N H T d", three=3, H=self.heads)
        return self.proj(rearrange(attention(q, k, v), "N H T d -> N T (H d)"))


class MLP(nn.Module):
    """Exact (erf) GELU, as the original has it although Google's SigLIP was trained with the tanh form."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner_width)
        self.fc2 = nn.Linear(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP of a vision transformer, each on the norm of what it is added to."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SigLIP(nn.Module):
    """Pictures to patch features: (N, 3, S, S) -> (N, T, D), after the final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)
        self.pos_embed = nn.Parameter(empty(1, config.tokens, config.width).normal_(std=0.02))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        size = self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixels must be (N, 3, {size}, {size}) for this vision tower, not {tuple(pixels.shape)}"
            )
        x = self.patches(pixels) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def patches(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, T, D): patches do not overlap, so their convolution is a matrix product."""
        conv = self.patch_embed
        if not cpu.widens(pixels.device, pixels.dtype):
            return rearrange(conv(pixels), "N D h w -> N (h w) D")
        size = self.config.patch_size
        whole = pixels.shape[2] // size * size  # what is left over is not seen
        each = rearrange(pixels[:, :, :whole, :whole], "N C (h p) (w q) -> N (h w) (C p q)", p=size, q=size)
        return F.linear(each, conv.weight.flatten(1), conv.bias)
