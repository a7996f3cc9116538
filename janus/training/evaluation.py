"""What is measured of a model while it learns, on data that it does not learn from.

A recipe without `evaluate` builds none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import islice

import torch

from janus.evaluation.shapes import answer, draw, picture_sides
from janus.pipeline import Pipeline
from janus.training.data.documents import Builder
from janus.training.data.limits import Guard
from janus.training.data.loader import Loader
from janus.training.data.mixture import Mixture
from janus.training.feed import parts_of, vq_of
from janus.training.objectives import Sums, figures
from janus.training.parallel import computing, split_again
from janus.training.parts import eval_mode
from janus.training.recipe.sections import Data
from janus.training.recipe.watch import Evaluation
from janus.training.run import Run, shown
from janus.training.worlds import shapes

Evaluator = Callable[[], dict[str, float]]
SEED = 0  # of the validation lists, and of what is drawn for them


def build_evaluator(run: Run) -> Evaluator | None:
    """What is called whenever it is due, by all processes; -> figures by name. None where none is configured.

    Its data are opened here, so that what is wrong with them is told before the first step.
    """
    settings = run.recipe.evaluate
    if settings is None:
        return None
    if settings.evaluator == "shapes":
        picture_sides(run.model)
        return partial(_score_shapes, run, settings)
    recipe, model, place = run.recipe, run.model, run.place
    data = Data(sources=settings.sources)
    parts = parts_of(data, side=model.config.picture_size, vq=vq_of(model), geometry=run.geometry)
    builder = Builder(
        processor=run.processor,
        guard=Guard(recipe.data.sequence_length, recipe.data.overlong),
        geometry=run.geometry,
        prompt_dropout=0.0,
        unreadable=recipe.data.unreadable,
    )
    # Of another seed than the training's: worlds without end then show what was never trained on.
    mixture = Mixture(parts, seed=recipe.seed + 1, rank=place.rank, ranks=place.size)
    sizes = [part.source.size for part in parts]
    held = settings.examples if None in sizes else min(settings.examples, sum(filter(None, sizes)))
    rows = min(run.loader.rows, max(1, held // place.size))
    most = max(1, held // (rows * place.size))

    def loader() -> Loader:
        return Loader(mixture, builder, rows=rows, length=recipe.data.sequence_length, packed=False)

    return partial(_held_out_loss, run, loader, most)


@torch.no_grad()
def _held_out_loss(run: Run, loader: Callable[[], Loader], batches: int) -> dict[str, float]:
    """The losses of the same documents every time, per labeled token."""
    place = run.place
    found = torch.zeros((), dtype=torch.float64)
    with eval_mode(run.model), nullcontext() if run.average is None else run.average.swapped():
        for batch in islice(loader(), batches):
            moved = run.encoded(batch.to(place.device))
            with computing(run.recipe, place):
                losses = torch.stack(run.objective(moved)).cpu().double()
            labels = losses.new_tensor([batch.text_labels, batch.code_labels])
            found = found + torch.cat((labels, losses))
        split_again(run.objective)
    words, codes, *sums = place.summed(found)
    told = figures(Sums(*sums), run.recipe.loss, float(words), float(codes))
    return {f"held_out_{name}": float(value) for name, value in told.items()}


def _score_shapes(run: Run, settings: Evaluation) -> dict[str, float]:
    """The verified shares of pictures and answers, of a color by its name; the first process finds them."""
    scores: dict[str, float] = {}
    with shown(run) as model:
        if model is not None:
            pipe, count = Pipeline(model, run.processor, vae=run.vae), settings.examples
            drawn, seen = picture_sides(pipe)
            for source in settings.sources:
                color = source.color
                of = f"_{color}" if color else ""
                if source.task == "drawing":
                    prompts = shapes.seen_prompts(count, SEED, split="validation", side=drawn, color=color)
                    scores[f"drawing{of}"] = sum(draw(pipe, prompts, SEED, None)) / count
                else:
                    asked = shapes.questions(
                        count, SEED, held_out=False, split="validation", side=seen, color=color
                    )
                    scores[f"answers{of}"] = sum(answer(pipe, asked, None)) / count
    return scores
