"""What a model draws and answers while it learns."""

from __future__ import annotations

from PIL import Image

from janus.models.vae import VAE
from janus.pipeline import Pipeline
from janus.processing.processor import Processor
from janus.training.parts import AnyModel
from janus.training.recipe import Recipe
from janus.training.recipe_sections import Asked

LONGEST = 64  # tokens of an answer


def draw_and_ask(
    model: AnyModel, processor: Processor, recipe: Recipe, *, vae: VAE | None = None
) -> tuple[list[tuple[str, Image.Image]], list[tuple[Asked, str]]]:
    """The recipe's prompts drawn, always from its seed, and its pictures asked about, for `RunLog.samples`.

    `vae` is what a JanusFlow draws with. Torch's own random numbers are not touched, so that training goes on
    as if nothing had been drawn.
    """
    pipe, log = Pipeline(model, processor, vae=vae), recipe.log
    pictures = pipe.draw(list(log.prompts), seed=recipe.seed % 2**62, progress=False) if log.prompts else []
    answers = [
        (asked, pipe.ask(asked.question, asked.picture, max_new_tokens=LONGEST, seed=0))
        for asked in log.pictures
    ]
    return list(zip(log.prompts, pictures, strict=True)), answers
