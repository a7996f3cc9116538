"""A step of training the language model on a sequence of words: forward, backward, AdamW.

The learning rate is 0: every number is computed and written, and the weights, which all share, stay. Either
model is plain PyTorch here, in the mode that its class is made in, and so is the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from cases import TRAIN_STEP, ModelCase
from janus.models.janus import Janus
from measure import Cost
from timer import Call
from variants import Prepare

CASES = TRAIN_STEP
BUDGET, CAPTURE = models.BUDGET, False


def cost(case: ModelCase) -> Cost:
    """Weights are read both ways, gradients written; AdamW reads four numbers for each and writes three.

    The way back computes twice what the way forth does.
    """
    language = case.model.language
    inside, head = models.linear_weights(language), language.width * language.vocabulary
    attended = 4 * case.keys * (case.keys + 1) / 2 * language.layers * language.heads * language.head_width
    flop = 3 * (2 * case.keys * (inside + head) + attended)
    return Cost(10 * (inside + 2 * head) * case.dtype.itemsize, round(flop), case.dtype)


def inputs(case: ModelCase, device: torch.device) -> tuple[Any, ...]:
    """The model and words (1, S), each of which the ones before it are to tell."""
    words = torch.randint(case.model.language.vocabulary, (1, case.keys), device=device)
    return models.shared(case, device), words


def training(model: nn.Module, loss_of: Callable[[], Tensor], shown: tuple[nn.Parameter, ...]) -> Call:
    """-> the loss and the gradients of some parameters."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def call() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
        gradients = [parameter.grad for parameter in shown]
        optimizer.step()
        return loss.detach()[None], *(gradient for gradient in gradients if gradient is not None)

    return call


def ours(model: Janus, words: Tensor) -> Call:
    def loss() -> Tensor:
        hidden = model.hidden_states(model.embed(words))
        return F.cross_entropy(model.text_logits(hidden)[0, :-1].float(), words[0, 1:])

    return training(model, loss, (model.language.norm.weight, model.language.embed.weight))


def problem(case: ModelCase, given: tuple[Any, ...], name: str, result: Any, expected: Any) -> str | None:
    return models.problem(case, name, result, expected)


def setup(case: ModelCase, device: torch.device) -> dict[str, Prepare]:
    return models.setup(case, ours, ("transformers",))
