"""SigLIP's loss: which captions are of which pictures, each pair of a batch judged by itself.

The vision tower learns what captions tell of, before anything is answered or drawn. The other tower is the
language model: a caption is its state at the last token of the prompt to draw it, from which the first code
of the drawing will be predicted. Source: Zhai et al., "Sigmoid loss for language image pre-training" (2023),
and Google's big_vision for the pooling and the first values.

B pictures of a process and N captions of all, T patches of a picture, L tokens of a caption, E SigLIP's
width, D the language model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, distributed, nn
from torch.nn.utils.rnn import pad_sequence

from janus.config import AnyConfig
from janus.kernels.attention import attention
from janus.models.siglip import MLP
from janus.training.costs.flops import Counts
from janus.training.data.rows import Meaning
from janus.training.parts import ALIGNMENT, AnyModel
from janus.training.vq.ranks import gathered

if TYPE_CHECKING:
    from janus.training.parallel import Ranks

# What logits begin as: nearly all pairs do not fit, and at the start that is to be expected of each.
SCALE, BIAS = 10.0, -10.0


@dataclass(frozen=True)
class Pairs:
    """Pictures (B, 3, S, S) as they are seen, and the prompts of their captions with what these mean."""

    pixels: Tensor
    prompts: list[list[int]]
    meanings: list[Meaning | None]

    def __len__(self) -> int:
        return len(self.prompts)

    def count(self) -> Counts:
        """What a process's share of a step holds."""
        lengths = [len(prompt) for prompt in self.prompts]
        attended = sum(length * (length + 1) // 2 for length in lengths)
        return Counts(tokens=sum(lengths), pairs=attended, seen=len(lengths))


class Contrast(nn.Module):
    """What the towers have while they are compared, and only then.

    Patches (B, T, E) become one vector by `pool`, states (N, D) another by `words`; `scale` (its logarithm)
    and `bias` make logits of their cosines.
    """

    def __init__(self, config: AnyConfig) -> None:
        super().__init__()
        self.pool = AttentionPooling(config.vision.width, config.vision.heads, config.vision.mlp_width)
        self.words = nn.Linear(config.language.width, config.vision.width)
        self.scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.bias = nn.Parameter(torch.tensor(BIAS))


class AttentionPooling(nn.Module):
    """One query that learns attends to a picture's patches: (B, T, E) -> (B, E). SigLIP's own head."""

    def __init__(self, width: int, heads: int, inner_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(width).normal_(std=width**-0.5))
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = MLP(width, inner_width)

    def forward(self, patches: Tensor) -> Tensor:
        k, v = rearrange(self.kv(patches), "B T (two H d) -> two B H T d", two=2, H=self.heads)
        q = rearrange(self.query.to(k.dtype), "(H d) -> H 1 d", H=self.heads).expand(len(k), -1, -1, -1)
        x = self.proj(rearrange(attention(q, k, v), "B H 1 d -> B (H d)"))
        return x + self.mlp(self.norm(x))


def attach_contrast(model: AnyModel) -> None:
    """Give a model what its towers are compared by, in place, where another recipe has its projector."""
    model.add_module(ALIGNMENT, Contrast(model.config).to(model.device, model.dtype))


def add_contrast(model: AnyModel, *, seed: int) -> None:
    """As `attach_contrast`, random by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attach_contrast(model)


class ContrastObjective(nn.Module):
    """A model with its `Contrast`, as data-parallel processes call it: each has pictures of its own."""

    def __init__(self, model: AnyModel, group: distributed.ProcessGroup | None = None) -> None:
        super().__init__()
        self.model, self.group = model, group

    def forward(self, pixels: Tensor, ids: Tensor, ends: Tensor, fits: Tensor) -> tuple[Tensor, Tensor]:
        """-> the sum over pairs (B, N) of losses, and how many pictures' likeliest caption is one that fits.

        pixels (B, 3, S, S); ids (B, L), padded on the right, of which `ends` (B,) are the last; fits (B, N)
        says which captions of all processes, in the order of ranks, hold for this one's pictures.
        """
        contrast = getattr(self.model, ALIGNMENT)
        pictures = F.normalize(contrast.pool(self.model.vision(pixels.to(self.model.dtype))).float(), dim=-1)
        # Padding comes after the last token, and what is causal does not see it from there.
        states = self.model.language(self.model.language.embed(ids))
        last = states[torch.arange(len(ids), device=ids.device), ends]
        captions = F.normalize(contrast.words(last).float(), dim=-1)
        if self.group is not None:
            captions = _Gathered.apply(captions, self.group)
        logits = pictures @ captions.T * contrast.scale.float().exp() + contrast.bias.float()
        right = fits.gather(1, logits.argmax(dim=1, keepdim=True)).sum()
        return -F.logsigmoid(torch.where(fits, logits, -logits)).sum(), right


class _Gathered(torch.autograd.Function):
    """Rows of all processes, in the order of ranks; each gets the gradients that any of them has for its."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group = group
        return gathered(rows, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        total = gradient.clone()
        distributed.all_reduce(total, group=ctx.group)
        return total.chunk(ctx.group.size())[ctx.group.rank()], None


def prompts_in(pairs: Pairs, pad_id: int) -> tuple[Tensor, Tensor]:
    """The prompts (B, L), padded on the right, and the places (B,) of their last tokens."""
    prompts = [torch.tensor(prompt) for prompt in pairs.prompts]
    ids = pad_sequence(prompts, batch_first=True, padding_value=pad_id)
    return ids, torch.tensor([len(prompt) - 1 for prompt in prompts])


def fitting(pairs: Pairs, place: Ranks) -> Tensor:
    """Which captions of all processes hold for the pictures of this one, (B, N) bool.

    A picture's own does, one of the same words does, and those that by their meaning do: a picture of a red
    circle is also one of "a circle".
    """
    every = list(zip(pairs.prompts, pairs.meanings, strict=True))
    if place.size > 1:
        shared: list[Any] = [None] * place.size
        distributed.all_gather_object(shared, every, group=place.group)
        every = [each for part in shared for each in part]
    return torch.tensor(
        [
            [prompt == other or _holds(meaning, theirs) for other, theirs in every]
            for prompt, meaning in zip(pairs.prompts, pairs.meanings, strict=True)
        ]
    )


def _holds(picture: Meaning | None, caption: Meaning | None) -> bool:
    return picture is not None and caption is not None and picture.is_also(caption)
