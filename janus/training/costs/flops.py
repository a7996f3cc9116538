"""FLOP of training: what a step computes, forward and backward, and what the machine computes at most.

A product of m x k by k x n numbers is 2mkn. Norms, activations and softmax are left out, and so is what is
computed twice under activation checkpointing: what is counted is what the model needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from janus.config import (
    LATENT_PATCH,
    AdapterConfig,
    AnyConfig,
    JanusConfig,
    JanusFlowConfig,
    LanguageConfig,
    UViTConfig,
    VisionConfig,
    VQConfig,
)
from janus.models.uvit import KERNEL, MLP_RATIO
from janus.models.vae import VAE, VAEConfig
from janus.models.vq import VQ


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a step holds.

    Positions (`tokens`, padding included), pairs of a position and one before it or itself that it attends to
    (`pairs`, n (n + 1) / 2 of a document of n tokens), pictures `seen`, `tokenized` (or made latents) and
    `drawn`, codes that are read (`codes`), and positions that predict a word or a code (`word_labels`,
    `code_labels`).
    """

    tokens: int = 0
    pairs: int = 0
    seen: int = 0
    tokenized: int = 0
    drawn: int = 0
    codes: int = 0
    word_labels: int = 0
    code_labels: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOP for each of what `Counts` counts."""

    tokens: int
    pairs: int
    seen: int
    tokenized: int
    drawn: int = 0
    codes: int = 0
    word_labels: int
    code_labels: int = 0

    def of(self, counts: Counts) -> int:
        """FLOP of a step."""
        return sum(number * getattr(self, name) for name, number in vars(counts).items())


def cost(config: JanusConfig, train: Collection[str], *, adapted: bool = False) -> Cost:
    """What a step costs whose parts `train` learn; see `janus.training.parts`.

    `adapted`: adapters learn in the language model, so that gradients flow in its blocks. Their own products
    are left out, as they are small.

    A linear layer costs three times its product where both it and something before it learn, twice where one
    of the two does, once where neither does. Attention costs three times its own where something before it
    learns, since both of what it multiplies have gradients then.
    """
    width, head = config.language.width, config.image_head_width
    # Whether gradients flow in the language model's blocks: before the first of their layers stands a norm.
    reached = adapted or bool(set(train) - {"vq", "image_head", "text_head"})
    seen = _adapter(config.vision_adapter, "vision" in train, "vision_adapter" in train)
    return Cost(
        **_language(config.language, reached, train),
        seen=_tower(config.vision, "vision" in train) + config.vision.tokens * seen,
        tokenized=tokenizing_flop(config.vq, config.picture_size),
        codes=_adapter(config.code_adapter, "code_embedding" in train, "code_adapter" in train),
        code_labels=_linear(width * head, reached, "image_head" in train)
        + _linear(head * config.vq.codes, reached or "image_head" in train, "image_head" in train),
    )


def contrast_cost(config: AnyConfig, train: Collection[str]) -> Cost:
    """As `cost`, of SigLIP's training: pictures that are seen, and their captions' tokens.

    Of what is done once for a picture, the pooling's keys and values are counted.
    """
    vision, learns = config.vision, "vision" in train
    pooled = vision.tokens * _linear(2 * vision.width**2, learns, True)
    read = _language(config.language, bool({"embed", "language"} & set(train)), train)
    return Cost(**{**read, "word_labels": 0}, seen=_tower(vision, learns) + pooled, tokenized=0)


def flow_cost(
    config: JanusFlowConfig,
    train: Collection[str],
    vae: VAEConfig | None,
    *,
    alignment: bool,
    adapted: bool = False,
) -> Cost:
    """As `cost`, of a JanusFlow; without an autoencoder nothing is drawn.

    With `alignment` every picture that is drawn goes through SigLIP, forward, and its tokens through the
    projector, which learns.
    """
    reached = adapted or bool(set(train) - {"velocity_norm", "velocity_adapter", "decoder", "text_head"})
    vision, width, size = config.vision, config.language.width, config.picture_size
    seen = _linear(vision.width * width, "vision" in train, "vision_adapter" in train)
    tokenized = drawn = 0
    if vae is not None:
        tokens = (size // (vae.factor * LATENT_PATCH)) ** 2
        tokenized = encoding_flop(vae, size) + (_tower(vision, False) if alignment else 0)
        drawn = _drawn(config.uvit, width, tokens, reached, train)
        if alignment:
            inner = _linear(width**2, reached, True) + _linear(width**2, True, True)
            drawn += tokens * (inner + _linear(width * vision.width, True, True))
    return Cost(
        **_language(config.language, reached, train),
        seen=_tower(vision, "vision" in train) + vision.tokens * seen,
        tokenized=tokenized,
        drawn=drawn,
    )


def _language(config: LanguageConfig, reached: bool, train: Collection[str]) -> dict[str, int]:
    """What positions, pairs of them and words cost; `reached`: gradients flow in the blocks."""
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    block = config.width * (2 * query + 2 * key + 3 * config.mlp_width)
    attended = 4 * config.heads * config.head_width * config.layers
    return {
        "tokens": config.layers * _linear(block, reached, "language" in train),
        "pairs": attended * (3 if reached else 1),
        "word_labels": _linear(config.width * config.vocabulary, reached, "text_head" in train),
    }


def _drawn(config: UViTConfig, width: int, tokens: int, reached: bool, train: Collection[str]) -> int:
    """A picture of so many tokens through the U-ViT and its linear layers; for `reached` see `_language`."""
    encodes, decodes = "encoder" in train, "decoder" in train
    patch = config.latent_channels * config.kernel_size**2
    encoder = (
        _linear(config.width * config.time_width, False, encodes)
        + _linear(config.time_width**2, encodes, encodes)
        + tokens * _linear(patch * config.width, False, encodes)
        + config.encoder_blocks
        * _convnext(config.width, config.time_width, tokens, encodes, encodes, encodes)
    )
    adapters = _linear(config.width * width, encodes, "latent_adapter" in train) + _linear(
        width * config.decoder_width, reached or "velocity_norm" in train, "velocity_adapter" in train
    )
    channels = config.decoder_width + config.width
    # The first block's input has gradients where anything before it learns, its own norm included.
    before = reached or decodes or encodes or bool({"velocity_norm", "velocity_adapter"} & set(train))
    decoder = config.decoder_blocks * _convnext(
        channels, config.time_width, tokens, before, encodes, decodes
    ) + tokens * _linear(channels * LATENT_PATCH**2 * config.latent_channels, before, decodes)
    return encoder + tokens * adapters + decoder


def _convnext(channels: int, time_width: int, tokens: int, before: bool, time: bool, learns: bool) -> int:
    """A block; `before` and `time` say whether its input, and the time's embedding, have gradients."""
    inner = before or learns
    return tokens * (
        _linear(KERNEL**2 * channels, before, learns) + _linear(2 * MLP_RATIO * channels**2, inner, learns)
    ) + _linear(2 * channels * time_width, time, learns)


def _linear(weights: int, before: bool, learns: bool) -> int:
    """A layer's FLOP for one row, with gradients for what comes before it and for itself."""
    return 2 * weights * (1 + before + learns)


def _adapter(config: AdapterConfig, before: bool, learns: bool) -> int:
    if config.kind == "identity":
        return 0
    first = _linear(config.input_width * config.output_width, before, learns)
    others = config.depth - 1 if config.kind == "mlp_gelu" else 0
    return first + others * _linear(config.output_width**2, before or learns, learns)


def _tower(config: VisionConfig, learns: bool) -> int:
    """A picture through SigLIP."""
    patches = _linear(3 * config.patch_size**2 * config.width, False, learns)
    block = _linear(4 * config.width**2 + 2 * config.width * config.mlp_width, learns, learns)
    attended = 4 * config.tokens * config.width * (3 if learns else 1)
    return config.tokens * (patches + config.depth * (block + attended))


@cache
def tokenizing_flop(config: VQConfig, size: int) -> int:
    """A picture of `size` pixels to a side through the VQ tokenizer's encoder and codebook."""
    with torch.device("meta"), torch.no_grad():
        vq = VQ(config)
        counted = _count(lambda: vq.latents(torch.empty(1, 3, size, size)))
    return counted + 2 * (size // config.factor) ** 2 * config.codes * config.code_width


@cache
def encoding_flop(config: VAEConfig, size: int) -> int:
    """A picture of `size` pixels to a side through the encoder of an autoencoder of latents."""
    with torch.device("meta"), torch.no_grad():
        vae = VAE(config)
        return _count(lambda: vae.encode(torch.empty(1, 3, size, size)))


@cache
def reconstruction_flop(config: VQConfig | VAEConfig, size: int) -> int:
    """A picture of `size` pixels to a side through a tokenizer and back, once, without a codebook."""
    with torch.device("meta"), torch.no_grad():
        pixels = torch.empty(1, 3, size, size)
        if isinstance(config, VQConfig):
            vq = VQ(config)
            return _count(lambda: vq.decode_latents(vq.latents(pixels)))
        vae = VAE(config)
        return _count(lambda: vae.decode(vae.encode(pixels).mean))


def _count(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def machine_rate(device: str | torch.device, dtype: torch.dtype, *, seconds: float = 0.3) -> float:
    """FLOP a second of a large matrix product here: what no training on this device can exceed.

    The best of the products that fit in `seconds`, one at least.
    """
    target = torch.device(device)
    width = 1024 if target.type == "cpu" else 8192
    left, right = (torch.ones(width, width, dtype=dtype, device=target) for _ in range(2))
    torch.mm(left[:64, :64], right[:64, :64])  # what is done once only is not the product's time
    best = spent = float("inf")
    begin = time.perf_counter()
    while spent == float("inf") or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        torch.mm(left, right)
        if target.type != "cpu":
            torch.get_device_module(target).synchronize()
        spent = time.perf_counter() - start
        best = min(best, spent)
    return 2 * width**3 / best
