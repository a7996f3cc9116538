"""Learning which words of a caption belong together: by what a picture is, and what it would be by mistake.

To a picture of "a red circle and a blue square" belongs a caption that says "a blue circle and a red square",
of the very same words. The picture is to be likelier by its own caption than by that one: the loss of a pair
is -log sigmoid(log p(picture | its caption) - log p(picture | the mistake)), of the codes up to that with
which the pair is settled (`until_settled`). What both have in common, where things happen to stand above all,
is no part of the difference; imitation spends most of what it learns on that, and to it an exchange of colors
is worth less than a hundredth of a picture's loss.

The gradient of a pair is that of two cross-entropies, weighted by how far the pair is from being told apart
and the other way round: the differences are computed first, the weights then go with the batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from janus.models.janus import Janus
from janus.processing.image import load_picture, square_picture, to_signed_pixels
from janus.training.data.example import drawing_example
from janus.training.data.order import hashed
from janus.training.data.outline import Geometry
from janus.training.data.packing import Batch
from janus.training.objectives import assemble, encode
from janus.training.parallel import computing
from janus.training.parts import eval_mode
from janus.training.recipe.learning import Mistakes
from janus.training.run import Run
from janus.training.weighted import Weighted, batches_of, prompt_room, weighted
from janus.training.worlds import shapes
from janus.training.worlds.shapes.draws import pick
from janus.training.worlds.shapes.mistakes import MISTAKABLE, mistake

TRIES = 100  # pairs that cannot be mistaken, or are too long for a row, are drawn anew
ENCODED = 8  # pictures that the tokenizer encodes at once
SETTLED = 3.0  # nats, of which a pair is told apart: one is 20 times likelier than the other


@dataclass(frozen=True)
class Pair:
    """A drawing with a caption, and one of the same wording that is mistaken."""

    drawing: shapes.Drawing
    caption: str
    mistaken: str


def tell_apart(run: Run, settings: Mistakes) -> Weighted:
    """This process's share of the pairs of the run's next step, and how much each is to count."""
    assert isinstance(run.model, Janus)  # the recipe was checked
    geometry, given = Geometry.of(run.model.config), pairs(run, settings)
    codes = codes_of(run, [pair.drawing for pair in given])
    captions = [pair.caption for pair in given] + [pair.mistaken for pair in given]
    # The seed, which only a flow needs, is the picture's number: in batches they are in another order.
    examples = [
        drawing_example(run.processor, caption, codes[number % len(given)], geometry, seed=number)
        for number, caption in enumerate(captions)
    ]
    batches = batches_of(run, examples)
    likelihoods = torch.zeros(len(captions), geometry.tokens)
    with torch.no_grad(), eval_mode(run.model):
        for batch in batches:
            with computing(run.recipe, run.place):
                found = log_likelihoods(run.model, batch.to(run.place.device))
            likelihoods[batch.seeds] = found.cpu()
    own, others = likelihoods.chunk(2)
    unsettled = until_settled(own - others)
    differences = ((own - others) * unsettled).sum(dim=1)
    doubts = (-differences).sigmoid()[:, None] * unsettled
    told = run.place.summed((differences > 0).sum().to(run.place.device).float())
    return Weighted(
        batches=weighted(batches, torch.cat((doubts, -doubts))),
        labels=settings.pairs / settings.weight,
        figures={"told_apart": told / settings.pairs},
    )


def until_settled(differences: Tensor) -> Tensor:
    """Of the differences (N, T) of a pair's codes, in order: 1 up to that with which it is settled, then 0.

    What follows is a picture that the mistaken caption would not have begun so: to make it unlikely by that
    caption teaches nothing that is needed to draw, and costs what is.
    """
    settled = differences.cumsum(dim=1) > SETTLED
    return (settled.cumsum(dim=1) - settled.int() == 0).float()


def pairs(run: Run, settings: Mistakes) -> list[Pair]:
    """This process's share of the run's next step: functions of the recipe's seed and the step."""
    return [
        _pair(run, settings, np.random.default_rng(hashed("pair", run.recipe.seed, run.step, number)))
        for number in range(run.place.rank, settings.pairs, run.place.size)
    ]


def _pair(run: Run, settings: Mistakes, random: np.random.Generator) -> Pair:
    """ValueError where no row holds such captions together with the codes."""
    assert isinstance(run.model, Janus)
    room, side = prompt_room(run), run.model.config.picture_size
    for _ in range(TRIES):
        drawing = shapes.drawing(random, category=pick(random, settings.categories or MISTAKABLE), side=side)
        wrong = mistake(random, drawing.meaning)
        if wrong is None:
            continue
        # One wording for both, or the pair would differ in more than the mistake.
        wording = int(random.integers(2**63))
        caption, mistaken = (
            shapes.caption(np.random.default_rng(wording), spec) for spec in (drawing.spec, wrong)
        )
        if max(len(run.processor.draw_prompt(each)) for each in (caption, mistaken)) <= room:
            return Pair(drawing, caption, mistaken)
    raise ValueError(
        f"data.sequence_length = {run.recipe.data.sequence_length} leaves no room for the pairs of mistakes: "
        f"prompts have more than {room} tokens, so raise it"
    )


def codes_of(run: Run, drawings: list[shapes.Drawing]) -> Tensor:
    """(N, grid, grid) codes of their pictures, on the CPU."""
    assert isinstance(run.model, Janus)
    side = run.model.config.picture_size
    pixels = [to_signed_pixels(square_picture(load_picture(each.picture), side)) for each in drawings]
    parts = torch.stack(pixels).split(ENCODED)
    return torch.cat([encode(run.model, part.to(run.place.device)).cpu() for part in parts])


def log_likelihoods(model: Janus, batch: Batch) -> Tensor:
    """Of each code of the pictures drawn in a batch: (M, T) float32, the logarithm of its probability."""
    hidden = model.hidden_states(assemble(model, batch), documents=batch.document)
    logits = model.image_logits(hidden[batch.code_labels_mask]).float()
    return -F.cross_entropy(logits, batch.codes.flatten(), reduction="none").view(len(batch.codes), -1)
