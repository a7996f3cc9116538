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

from janus.config import AdapterConfig, JanusConfig, VisionConfig, VQConfig
from janus.models.vq import VQ


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a step holds.

    Positions (`tokens`, padding included), pairs of a position and one before it or itself that it attends to
    (`pairs`, n (n + 1) / 2 of a document of n tokens), pictures `seen` and `tokenized`, codes that are read
    (`codes`), and positions that predict a word or a code (`word_labels`, `code_labels`).
    """

    tokens: int = 0
    pairs: int = 0
    seen: int = 0
    tokenized: int = 0
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
    codes: int
    word_labels: int
    code_labels: int

    def of(self, counts: Counts) -> int:
        """FLOP of a step."""
        return sum(number * getattr(self, name) for name, number in vars(counts).items())


def cost(config: JanusConfig, train: Collection[str]) -> Cost:
    """What a step costs whose parts `train` learn; see `janus.training.parts`.

    A linear layer costs three times its product where both it and something before it learn, twice where one
    of the two does, once where neither does. Attention costs three times its own where something before it
    learns, since both of what it multiplies have gradients then.
    """
    language, head = config.language, config.image_head_width
    # Whether gradients flow in the language model's blocks: before the first of their layers stands a norm.
    reached = bool(set(train) - {"vq", "image_head", "text_head"})
    query, key = language.heads * language.head_width, language.kv_heads * language.head_width
    block = language.width * (2 * query + 2 * key + 3 * language.mlp_width)
    attended = 4 * language.heads * language.head_width * language.layers
    return Cost(
        tokens=language.layers * _linear(block, reached, "language" in train),
        pairs=attended * (3 if reached else 1),
        seen=_seen(config, train),
        tokenized=tokenizing_flop(config.vq, config.picture_size),
        codes=_adapter(config.code_adapter, "code_embedding" in train, "code_adapter" in train),
        word_labels=_linear(language.width * language.vocabulary, reached, "text_head" in train),
        code_labels=_linear(language.width * head, reached, "image_head" in train)
        + _linear(head * config.vq.codes, reached or "image_head" in train, "image_head" in train),
    )


def _linear(weights: int, before: bool, learns: bool) -> int:
    """A layer's FLOP for one row, with gradients for what comes before it and for itself."""
    return 2 * weights * (1 + before + learns)


def _adapter(config: AdapterConfig, before: bool, learns: bool) -> int:
    if config.kind == "identity":
        return 0
    first = _linear(config.input_width * config.output_width, before, learns)
    others = config.depth - 1 if config.kind == "mlp_gelu" else 0
    return first + others * _linear(config.output_width**2, before or learns, learns)


def _seen(config: JanusConfig, train: Collection[str]) -> int:
    """A picture through SigLIP and the adapter."""
    learns = "vision" in train
    tower = _tower(config.vision, learns)
    return tower + config.vision.tokens * _adapter(config.vision_adapter, learns, "vision_adapter" in train)


def _tower(config: VisionConfig, learns: bool) -> int:
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
def reconstruction_flop(config: VQConfig, size: int) -> int:
    """A picture of `size` pixels to a side through the VQ tokenizer and back, once, without the codebook."""
    with torch.device("meta"), torch.no_grad():
        vq = VQ(config)
        return _count(lambda: vq.decode_latents(vq.latents(torch.empty(1, 3, size, size))))


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
