"""What a model draws and answers while it learns."""

from __future__ import annotations

from PIL import Image

from janus.models.vae import VAE
from janus.pipeline import Pipeline
from janus.processing.processor import Processor
from janus.training.parts import AnyModel
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.watch import Log, PictureAsked
from janus.training.worlds import shapes
from janus.training.worlds.shapes.raster import LEAST_SIDE

LONGEST = 64  # tokens of an answer


def draw_and_ask(
    model: AnyModel, processor: Processor, recipe: Recipe, *, vae: VAE | None = None
) -> tuple[list[tuple[str, Image.Image]], list[tuple[PictureAsked, str]], list[tuple[shapes.Question, str]]]:
    """The recipe's prompts drawn, always from its seed, and its pictures and scenes asked about.

    All of it is for `RunLog.samples`.

    `vae` is what a JanusFlow draws with. Torch's own random numbers are not touched, so that training goes on
    as if nothing had been drawn.
    """
    pipe, log = Pipeline(model, processor, vae=vae), recipe.log
    pictures = pipe.draw(list(log.prompts), seed=recipe.seed % 2**62, progress=False) if log.prompts else []
    answers = [
        (asked, pipe.ask(asked.question, asked.picture, max_new_tokens=LONGEST, seed=0))
        for asked in log.pictures
    ]
    scenes = [
        (scene, pipe.ask(scene.question, scene.picture, max_new_tokens=LONGEST, seed=0))
        for scene in scenes_of(log, model.config.vision.image_size)
    ]
    return list(zip(log.prompts, pictures, strict=True)), answers, scenes


def check_scenes(log: Log, side: int) -> None:
    """ValueError where scenes are to be shown at a `side`, in pixels, that is too small for them."""
    if log.world is not None and side < LEAST_SIDE:
        raise ValueError(
            f"log.world: its scenes need {LEAST_SIDE} pixels a side, and the model's pictures have {side}: "
            "leave it out"
        )


def scenes_of(log: Log, side: int) -> list[shapes.Question]:
    """The scenes of the world that a log shows, at so many pixels a side: of its list for validation."""
    if log.world is None:
        return []
    return shapes.questions(log.scenes, 0, held_out=False, split="validation", side=side)
