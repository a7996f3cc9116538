"""Llama: the language model that sees and draws.

B rows, S positions of this call, K keys (those of the cache and this call's), H heads, G key-value heads, d
head width, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from janus.config import LanguageConfig
from janus.kernels.add_rms_norm import add_rms_norm
from janus.kernels.attention import attention
from janus.kernels.decode_attention import decode_attention
from janus.kernels.rotary import rotate
from janus.kernels.swiglu import swiglu

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Visibility:
    """Which keys the queries of a call, the last of them all, see.

    Those up to their own, from key `starts` (B,) of their row on if given; or those of a mask
    (B or 1, 1, S, K), where padding stands elsewhere than on the left. A lone query may be followed by keys
    that are not filled yet: its row ends at `ends` (B,). Of a row of documents, document i is the positions
    [offsets[i], offsets[i + 1]), some of them none.
    """

    starts: Tensor | None = None
    mask: Tensor | None = None
    ends: Tensor | None = None
    offsets: Tensor | None = None


class LayerCache(Protocol):
    """What a layer needs of a cache."""

    def append(
        self, query: Tensor, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate this call's queries (B, H, S, d) and keys (B, G, S, d), and store the keys and values.

        -> the queries, and all keys and values so far, (B, G, K, d) each.
        """


class KeyValueCache(Protocol):
    """What the language model needs of a cache; `janus.inference.cache` has two.

    `starts` (B,) says where rows begin if some have padding, and all of it on the left; it is None otherwise.
    `ends` (B,) says where rows end if the cache shows all that it has room for; it is None otherwise.
    """

    starts: Tensor | None
    ends: Tensor | None

    def begin(self, rows: int, positions: int, mask: Tensor | None) -> tuple[int, Tensor | None]:
        """Make room for a call; -> the positions filled before it, and which keys are real.

        The latter is (B, K) bool, or None where all are.
        """

    def layer(self, number: int) -> LayerCache:
        """The part of one layer, for this call."""

    def finish(self, positions: int) -> None:
        """Every layer has appended: this call's positions are part of the past."""


def rotary_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (B, S): (B, 1, S, d) each, in float32."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width
    angles = positions[:, None, :, None].float() * (1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


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


def document_starts(documents: Tensor) -> Tensor:
    """Where each position's own document begins, all rows being one: (B, S) numbers -> (B * S,).

    Neighbors of one number are of one document, unless a row ends between them.
    """
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    place = torch.arange(documents.numel(), device=documents.device)
    return torch.where(begins.flatten(), place, 0).cummax(0).values


def left_padded_starts(valid: Tensor) -> Tensor | None:
    """Where rows begin whose padding is all on the left: (B, K) bool -> (B,), or None where it is not."""
    starts = (~valid).sum(dim=1)
    keys = torch.arange(valid.shape[1], device=valid.device)
    return starts if bool((valid == (keys >= starts[:, None])).all()) else None


class RMSNorm(nn.Module):
    """Normalized in float32, cast back, then scaled: the order in which the original rounds."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """-> the norm of x; or, with a residual to add to it first, the norm of the sum and the sum."""
        normalized, total = add_rms_norm(x, self.weight, self.eps, residual)
        return normalized if residual is None else (normalized, total)


class JoinedLinear(nn.Linear):
    """Several projections of one input, computed as one: (..., D) -> (..., the sum of their sizes)."""

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__(width, sum(sizes), bias=False)
        self.sizes = sizes


class Attention(nn.Module):
    """Causal attention with rotary positions and grouped key-value heads."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.group = config.heads // config.kv_heads  # heads to a key-value head
        query, key = config.heads * config.head_width, config.kv_heads * config.head_width
        self.qkv = JoinedLinear(config.width, (query, key, key))
        self.o_proj = nn.Linear(config.heads * config.head_width, config.width, bias=False)
        # How it attends, to the cache in a step and else: a compiler may put something faster in its place.
        self.step_attention: Callable[..., Tensor] = decode_attention
        self.whole_attention: Callable[..., Tensor] = attention

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        visibility: Visibility,
        cache: LayerCache | None,
    ) -> Tensor:
        q, k, v = self.projected(x)
        if cache is None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        else:
            q, k, v = cache.append(q, k, v, rotary)
        if cache is not None and q.shape[2] == 1 and visibility.mask is None:
            of_one = self.step_attention(q[:, :, 0], k, v, starts=visibility.starts, ends=visibility.ends)
            mixed = of_one[:, :, None]
        elif visibility.mask is not None:
            mixed = self.whole_attention(q, k, v, mask=visibility.mask)
        else:
            lengths = None if visibility.starts is None else k.shape[2] - visibility.starts
            mixed = self.whole_attention(q, k, v, causal=True, lengths=lengths, offsets=visibility.offsets)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, D) -> queries (B, H, S, d), keys and values (B, G, S, d), of as many heads as a rank has."""
        # Views, since einops would cost as much as a small step itself.
        heads = self.qkv(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        keys = heads.shape[1] // (self.group + 2)
        q, k, v = heads.split((keys * self.group, keys, keys), dim=1)
        return q, k, v


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_up = JoinedLinear(config.width, (config.mlp_width, config.mlp_width))
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(*self.gate_up(x).chunk(2, dim=-1)))


class Block(nn.Module):
    """Attention and MLP, each after a norm, which adds to the residual what came before it."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        visibility: Visibility,
        cache: LayerCache | None,
    ) -> tuple[Tensor, Tensor]:
        """(B, S, D) and what is still to be added to it -> the same two, for the next norm to add."""
        x, residual = (self.input_norm(x), x) if residual is None else self.input_norm(x, residual)
        x, residual = self.mlp_norm(self.attention(x, rotary, visibility, cache), residual)
        return self.mlp(x), residual


class Llama(nn.Module):
    """Embeddings in, hidden states after the final norm out; `embed` and `head` are its two ends.

    Of a model split over several processes (`janus.inference.tensor_parallel`) it is one rank's share, with
    the `mesh` of the ranks; `config` is then that of the share.
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.mesh: DeviceMesh | None = None
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        # How a layer runs in steps of fixed shapes, which a compiler may put something faster in place of.
        self.fixed_step: Callable[..., tuple[Tensor, Tensor]] = Block.__call__
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
        documents: Tensor | None = None,
    ) -> Tensor:
        """(B, S, D) -> (B, S, D).

        `mask` tells real positions from padding: (B, S), or (B, K) with the cache's before it. Padding is
        invisible and its own hidden states are zero. `positions` (B, S) are counted from the mask, unless
        given. `documents` (B, S) number the documents that share a row, neighbors differently, and are 0 at
        padding: none sees another, and in each positions are counted anew, unless given. They take the place
        of the mask, and there can be no cache.
        """
        if documents is not None:
            if mask is not None or cache is not None:
                raise ValueError("documents leave nothing for a mask or a cache to say: give neither")
            return self.through_documents(embeds, documents, positions=positions)[0]
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
        run = Block.__call__
        if valid is not None:
            visibility = _padded_visibility(valid, past, cache)
        elif cache is not None and cache.ends is not None:
            visibility, run = Visibility(cache.starts, ends=cache.ends), self.fixed_step
        else:
            visibility = Visibility()
        x, residual = embeds, None
        for number, block in enumerate(self.layers):
            part = None if cache is None else cache.layer(number)
            x, residual = run(block, x, residual, rotary, visibility, part)
        if cache is not None:
            cache.finish(length)
        x, _ = self.norm(x, residual)
        return x if valid is None else x.masked_fill(~valid[:, past:, None], 0)

    def through_documents(
        self, embeds: Tensor, documents: Tensor, *, positions: Tensor | None = None, after: int = 0
    ) -> tuple[Tensor, Tensor]:
        """What `forward` gives for documents, and what leaves the first `after` blocks; (B, S, D) each.

        The latter is before any norm, and means nothing at padding; after no block it is the input.
        """
        if not 0 <= after <= len(self.layers):
            raise ValueError(f"after must be from 0 to {len(self.layers)} blocks, not {after}")
        if documents.shape != embeds.shape[:2]:
            raise ValueError(f"documents must be {tuple(embeds.shape[:2])}, not {tuple(documents.shape)}")
        if documents.is_floating_point() or documents.dtype == torch.bool:
            raise ValueError(f"documents must be whole numbers, not {documents.dtype}")
        padding = (documents == 0)[..., None]
        starts = document_starts(documents)
        place = torch.arange(len(starts) + 1, device=starts.device)
        counted = place[:-1] - starts if positions is None else positions.flatten()
        tables = rotary_tables(counted[None], self.config.head_width, self.config.rope_theta)
        rotary = tables[0].to(embeds.dtype), tables[1].to(embeds.dtype)
        # All rows as one, so that documents are found by their offsets alone: one offset a position, most of
        # them of documents of no length, whose number needs no looking at.
        visibility = Visibility(offsets=torch.cat((starts, place[-1:])))
        # What padding holds is zero before it is multiplied by gradients of zero, which leave NaN as it is.
        x, residual = embeds.masked_fill(padding, 0).flatten(0, 1)[None], None
        passed = x
        for number, block in enumerate(self.layers, start=1):
            x, residual = block(x, residual, rotary, visibility, None)
            if number == after:
                passed = x + residual
        x, _ = self.norm(x, residual)
        last, passed = (each[0].unflatten(0, documents.shape) for each in (x, passed))
        return last.masked_fill(padding, 0), passed


def _padded_visibility(valid: Tensor, past: int, cache: KeyValueCache | None) -> Visibility:
    """What a call after `past` positions sees, of keys that are real where `valid` (B, K) says so."""
    if cache is not None:
        starts = cache.starts
    elif torch.compiler.is_compiling():
        starts = None  # to look at the mask's values would break the graph
    else:
        starts = left_padded_starts(valid)
    if starts is not None:
        return Visibility(starts)
    return Visibility(mask=causal_mask(valid.shape[1] - past, valid.shape[1], valid, valid.device))
