"""Llama: the language model that sees and draws.

B rows, S positions of this call, K keys (those of the cache and this call's), H heads, G key-value heads, d
head width, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus.config import LanguageConfig


@dataclass(frozen=True)
class Run:
    """Rows beside each other, `rows`, whose sequences begin at the same key, `start`."""

    rows: slice
    start: int


@dataclass(frozen=True)
class Sight:
    """Which keys the queries of a call see: a mask's (B or 1, 1, S, K), or those up to their own if `causal`.

    With `runs` there is one query a row, and it sees every key from its run's start on. With nothing, all see
    all.
    """

    mask: Tensor | None = None
    causal: bool = False
    runs: tuple[Run, ...] = ()


class KeyValueCache(Protocol):
    """What the layers need of a cache; `janus.inference.cache` has one.

    `runs` covers all rows where nothing but padding on the left tells them apart, and is empty otherwise.
    """

    runs: tuple[Run, ...]

    def begin(self, rows: int, positions: int, mask: Tensor | None) -> tuple[int, Tensor | None]:
        """Make room for a call; -> the positions filled before it, and which keys are real.

        The latter is (B, K) bool, or None where all are.
        """

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values, (B, G, S, d) each; -> all of them so far, (B, G, K, d) each."""

    def finish(self, positions: int) -> None:
        """Every layer has appended: this call's positions are part of the past."""


def rotary_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (B, S): (B, 1, S, d) each, in float32."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width
    angles = positions[:, None, :, None].float() * (1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions in the half-split form: x (B, H, S, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


def causal_mask(queries: int, keys: int, valid: Tensor | None, device: torch.device) -> Tensor | None:
    """Which keys each query may see: (B or 1, 1, S, K) bool. The queries are the last of the keys.

    `valid`, (B, K) bool, tells real keys from padding. None where every query sees every key. Padding sees
    itself: a query without any key is NaN in some attention kernels, and NaN would spread to the real ones.
    """
    if valid is None and queries == 1:
        return None
    key = torch.arange(keys, device=device)
    query = key[keys - queries :, None]
    if valid is None:
        return (key <= query)[None, None]
    return (key <= query) & (valid[:, None, None, :] | (key == query))


def attend(q: Tensor, k: Tensor, v: Tensor, sight: Sight, *, grouped: bool) -> Tensor:
    """Queries (B, H, S, d) over keys and values (B, G, K, d) -> (B, H, S, d).

    Runs are attended to one by one, without their padding: it would shift the order of summation, and a
    picture drawn in bfloat16 would depend on the length of the prompts beside it.
    """
    if not sight.runs:
        return F.scaled_dot_product_attention(q, k, v, sight.mask, is_causal=sight.causal, enable_gqa=grouped)
    parts = [
        F.scaled_dot_product_attention(
            q[run.rows], k[run.rows, :, run.start :], v[run.rows, :, run.start :], enable_gqa=grouped
        )
        for run in sight.runs
    ]
    return torch.cat(parts)


class RMSNorm(nn.Module):
    """Normalised in float32, cast back, then scaled: the order in which the original rounds."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normalised.to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions and grouped key-value heads."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_width = config.head_width
        self.grouped = config.heads != config.kv_heads
        self.q_proj = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        sight: Sight,
        cache: KeyValueCache | None,
    ) -> Tensor:
        q, k, v = (  # (B, H or G, S, d); views, since einops would cost as much as a small step itself
            projection(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mixed = attend(q, k, v, sight, grouped=self.grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        sight: Sight,
        cache: KeyValueCache | None,
    ) -> Tensor:
        x = x + self.attention(self.input_norm(x), rotary, sight, cache)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Embeddings in, hidden states after the final norm out; `embed` and `head` are its two ends."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.tie()

    def tie(self) -> None:
        """Make the head the embedding table itself, where the config ties them."""
        if self.config.tied_head:
            self.head.weight = self.embed.weight

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(B, S, D) -> (B, S, D).

        `mask` tells real positions from padding: (B, S), or (B, K) with the cache's before it. Padding is
        invisible and its own hidden states are zero. `positions` (B, S) are counted from the mask, unless
        given.
        """
        rows, length = embeds.shape[:2]
        past = 0
        valid = None if mask is None else mask.bool()
        if cache is not None:
            past, valid = cache.begin(rows, length, valid)
        if valid is not None and valid.shape != (rows, past + length):
            raise ValueError(f"attention_mask must be {(rows, past + length)}, not {tuple(valid.shape)}")
        if positions is None:
            if valid is None:
                positions = torch.arange(past, past + length, device=embeds.device)[None]
            else:
                positions = (valid.long().cumsum(-1) - 1).clamp_min(0)[:, past:]
        cosines, sines = rotary_tables(positions, self.config.head_width, self.config.rope_theta)
        rotary = cosines.to(embeds.dtype), sines.to(embeds.dtype)
        if cache is not None and cache.runs and length == 1 and mask is None:
            sight = Sight(runs=cache.runs)
        elif valid is None and past == 0 and length > 1:
            # Only a whole, unpadded sequence may leave the triangle to the kernel, which draws it from key 0.
            sight = Sight(causal=True)
        else:
            sight = Sight(mask=causal_mask(length, past + length, valid, embeds.device))
        x = embeds
        for block in self.layers:
            x = block(x, rotary, sight, cache)
        if cache is not None:
            cache.finish(length)
        x = self.norm(x)
        return x if valid is None else x.masked_fill(~valid[:, past:, None], 0)
