"""Answering: one word, seeing a picture, and reading a picture and a question up to the first word.

Ours is taken from `janus.inference.text`, greedy, as users run it; a step ends with the next word's choice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import compare
import models
from cases import ANSWER, ModelCase
from janus.inference.cache import PromptCache, join
from janus.inference.step import Step
from janus.inference.text import GREEDY, TextStep, TokenSampler, generate
from janus.models.janus import Janus
from measure import Cost
from timer import Call
from variants import Prepare

CASES = ANSWER
BUDGET, CAPTURE = models.BUDGET, False
ONLY_IF_ASKED_ON_CPU = ("janus-compiled",)
NEVER = -1  # no word ends an answer


def cost(case: ModelCase) -> Cost:
    return cost_of(case, "janus")


def cost_of(case: ModelCase, name: str) -> Cost:
    """Fewer bits to a weight are fewer bytes."""
    language = case.model.language
    head = language.width * language.vocabulary
    if case.task == "vision_encode":
        return vision_cost(case)
    return models.language_cost(case, 1, 1 if case.task == "text_step" else case.keys, head, name)


def vision_cost(case: ModelCase) -> Cost:
    """Weights once, pixels and features; the products of the tower and of its adapter, and attention."""
    vision, adapter = case.model.vision, case.model.vision_adapter
    tower = vision.depth * vision.width * (4 * vision.width + 2 * vision.mlp_width)
    patches = 3 * vision.patch_size**2 * vision.width
    features = adapter.input_width * adapter.output_width + (adapter.depth - 1) * adapter.output_width**2
    weights = tower + patches + features
    numbers = weights + 3 * vision.image_size**2 + vision.tokens * adapter.output_width
    attended = 4 * vision.depth * vision.tokens**2 * vision.width
    return Cost(numbers * case.dtype.itemsize, 2 * vision.tokens * weights + attended, case.dtype)


def inputs(case: ModelCase, device: torch.device) -> tuple[Any, ...]:
    """The model, and: keys, values and a word; pixels; or the embeddings of a picture and of words."""
    model, language = models.shared(case, device), case.model.language
    if case.task == "text_step":
        word = torch.randint(language.vocabulary, (1,), device=device)
        return model, *models.past(case, device, rows=1), word
    if case.task == "vision_encode":
        size = case.model.vision.image_size
        return model, torch.rand(1, 3, size, size, device=device).mul(2).sub(1).to(case.dtype)
    return model, torch.randn(1, case.keys, language.width, device=device, dtype=case.dtype)


class Answering:
    """Steps as `generate` takes them that all find as many keys: before each the cache is cut back.

    The first call feeds `word`, later ones what was chosen before.
    """

    def __init__(self, model: Janus, keys: Tensor, values: Tensor, word: Tensor) -> None:
        self.past = keys.shape[3]
        hidden = torch.zeros(model.config.language.width, device=keys.device, dtype=keys.dtype)
        self.cache = join([PromptCache(keys[:, 0], values[:, 0], hidden)], model.config.language, room=1)
        self.step = Step(
            model,
            self.cache,
            tokens=word.clone(),
            place=torch.zeros_like(word),
            feed=lambda tokens: model.language.embed(tokens)[:, None],
            pick=TokenSampler(model, GREEDY, [0], None),
        )

    def __call__(self) -> tuple[Tensor, Tensor]:
        self.cache.truncate(self.past)
        self.step.resume()
        word, logits = (tensor.clone() for tensor in self.step())
        return logits, word


def logits_and_word(step: TextStep) -> tuple[Tensor, Tensor]:
    return step.logits, step.tokens


def reading(model: Janus, embeds: Tensor) -> Call:
    return lambda: logits_and_word(next(generate(model, embeds, end_id=NEVER, max_new_tokens=1)))


def seeing(model: Janus, pixels: Tensor) -> Call:
    return lambda: model.encode_images(pixels)


def setup(case: ModelCase, device: torch.device) -> dict[str, Prepare]:
    ours: dict[str, Prepare] = {"text_step": Answering, "prefill": reading, "vision_encode": seeing}
    return models.setup(case, ours[case.task], ("transformers",))


def problem(case: ModelCase, given: tuple[Any, ...], name: str, result: Any, expected: Any) -> str | None:
    """Equal features; equal logits, and the word that is the largest of its own."""
    if case.task == "vision_encode":
        return models.problem(case, name, result, expected)
    (logits, word), (expected_logits, _) = result, expected
    if wrong := models.problem(case, name, logits, expected_logits):
        return wrong
    return compare.near_tie(word, logits.argmax(dim=-1), logits, 0.0)
