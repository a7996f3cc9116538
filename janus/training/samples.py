"""What a model draws and answers while it learns."""

from __future__ import annotations

from PIL import Image

from janus.models.janus import Janus
from janus.pipeline import Pipeline
from janus.processing.processor import Processor
from janus.training.recipe import Recipe
from janus.training.recipe_sections import Asked

LONGEST = 64  # tokens of an answer


def draw_and_ask(
    model: Janus, processor: Processor, recipe: Recipe
) -> tuple[list[tuple[str, Image.Image]], list[tuple[Asked, str]]]:
    """The recipe's prompts drawn, always from its seed, and its pictures asked about, for `RunLog.samples`.

    Torch's own random numbers are not touched, so that training goes on as if nothing had been drawn.
    """
    pipe, log = Pipeline(model, processor), recipe.log
    pictures = pipe.draw(list(log.prompts), seed=recipe.seed % 2**62, progress=False) if log.prompts else []
    answers = [
        (asked, pipe.ask(asked.question, asked.picture, max_new_tokens=LONGEST, seed=0))
        for asked in log.pictures
    ]
    return list(zip(log.prompts, pictures, strict=True)), answers
