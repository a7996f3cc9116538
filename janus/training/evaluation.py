"""What is measured of a model while it learns, on data that it does not learn from.

A recipe without `evaluate` builds none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import islice

import numpy as np
import torch

from janus.models.janus import Janus
from janus.pipeline import Pipeline
from janus.processing.processor import Processor
from janus.training.data.documents import Builder
from janus.training.data.limits import Guard
from janus.training.data.loader import Loader
from janus.training.data.mixture import Mixture
from janus.training.data.outline import Geometry
from janus.training.feed import parts_of
from janus.training.objectives import encode
from janus.training.parallel import computing
from janus.training.recipe_sections import Data, Evaluation
from janus.training.run import Run, shown
from janus.training.worlds import shapes

Evaluator = Callable[[], dict[str, float]]
LONGEST = 64  # tokens of an answer


def build_evaluator(run: Run) -> Evaluator | None:
    """What is called whenever it is due, by all processes; -> figures by name. None where none is configured.

    Its data are opened here, so that what is wrong with them is told before the first step.
    """
    settings = run.recipe.evaluate
    if settings is None:
        return None
    if settings.evaluator == "shapes":
        return partial(_score_shapes, run, settings)
    recipe, model, place = run.recipe, run.model, run.place
    geometry = Geometry.of(model.config)
    data = Data(sources=settings.sources)
    parts = parts_of(data, side=model.config.picture_size, vq=model.vq, geometry=geometry)
    builder = Builder(
        processor=run.processor,
        guard=Guard(recipe.data.sequence_length, recipe.data.overlong),
        geometry=geometry,
        prompt_dropout=0.0,
    )
    # Of another seed than the training's: worlds without end then show what was never trained on.
    mixture = Mixture(parts, seed=recipe.seed + 1, rank=place.rank, ranks=place.size)
    rows = min(run.loader.rows, max(1, settings.examples // place.size))
    most = max(1, settings.examples // (rows * place.size))

    def loader() -> Loader:
        return Loader(mixture, builder, rows=rows, length=recipe.data.sequence_length, packed=False)

    return partial(_held_out_loss, run, loader, most)


@torch.no_grad()
def _held_out_loss(run: Run, loader: Callable[[], Loader], batches: int) -> dict[str, float]:
    """The losses of the same documents every time, per labelled token."""
    place = run.place
    found = torch.zeros(4, dtype=torch.float64, device=place.device)
    with nullcontext() if run.average is None else run.average.swapped():
        for batch in islice(loader(), batches):
            moved = batch.to(place.device).tokenized(partial(encode, run.model))
            with computing(run.recipe, place):
                text, picture = run.objective(moved)
            labels = found.new_tensor([batch.text_labels, batch.code_labels])
            found += torch.cat((torch.stack((text, picture)).double(), labels))
    text_sum, picture_sum, words, codes = place.summed(found).tolist()
    weights = run.recipe.loss
    figures = {"held_out_loss": (weights.text * text_sum + weights.picture * picture_sum) / (words + codes)}
    figures |= {"held_out_text_loss": text_sum / words} if words else {}
    return figures | ({"held_out_picture_loss": picture_sum / codes} if codes else {})


def _score_shapes(run: Run, settings: Evaluation) -> dict[str, float]:
    """The verified shares of pictures and answers; the first process finds them."""
    kinds = {source.task for source in settings.sources}
    scores: dict[str, float] = {}
    with shown(run) as model:
        if model is not None:
            side = model.config.picture_size
            if "drawing" in kinds:
                scores["drawing"] = verified_drawings(model, run.processor, settings.examples, side)
            if "understanding" in kinds:
                scores["answers"] = correct_answers(model, run.processor, settings.examples, side)
    return scores


def verified_drawings(model: Janus, processor: Processor, count: int, side: int, *, seed: int = 0) -> float:
    """The share of prompts of the validation list whose pictures the verifier accepts."""
    wanted = shapes.seen_prompts(count, seed, split="validation", side=side)
    pipe = Pipeline(model, processor)
    drawn = pipe.draw([each.caption for each in wanted], seed=seed, progress=False)
    right = [
        shapes.verify(np.asarray(picture), each.spec) for picture, each in zip(drawn, wanted, strict=True)
    ]
    return sum(right) / count


def correct_answers(model: Janus, processor: Processor, count: int, side: int, *, seed: int = 0) -> float:
    """The share of questions of the validation list that are answered rightly."""
    asked = shapes.questions(count, seed, held_out=False, split="validation", side=side)
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": each.picture},
                    {"type": "text", "text": each.question},
                ],
            }
        ]
        for each in asked
    ]
    answers = Pipeline(model, processor).chat(conversations, max_new_tokens=LONGEST, seed=seed)
    return sum(shapes.correct(each, text) for each, text in zip(asked, answers, strict=True)) / count
