"""The world `shapes`: pictures through codes or latents, drawings and answers, each judged exactly."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from janus.checks import require_whole
from janus.evaluation.grid import contact_sheet
from janus.evaluation.scores import Judged, ListScores, PartScores, Scores
from janus.progress import Progress, Report
from janus.training.worlds import shapes
from janus.training.worlds.shapes import Drawing, Question
from janus.training.worlds.shapes.raster import LEAST_SIDE
from janus.training.worlds.shapes.sampling import require_color
from janus.training.worlds.shapes.stream import SPLITS, Split

# Prompts that share a seed. A seed's noise is the same for all its prompts: on one seed alone, all of a list
# would have the same luck, and the intervals, which take tasks for independent, would be too narrow.
GROUP = 64
MOST_ANSWER_TOKENS = 64  # four objects described take some twenty words

Item = TypeVar("Item", Drawing, Question)
Advance = Callable[[int], object]


def evaluate(
    pipe: Any,
    *,
    samples: int = 1000,
    seed: int = 0,
    split: Split = "test",
    color: str | None = None,
    batch_size: int | None = None,
    progress: bool | Report | None = None,
) -> Scores:
    """Judge a `janus.Pipeline` by the verifier of pictures and the judge of answers of the world.

    Six lists of `samples` tasks, fixed by `seed` and `split`: pictures to reconstruct, captions to draw
    (those of the same pictures) and questions to answer, of combinations that training sees and of those
    held out; with a `color`, three lists of what shows it. Drawn as the checkpoint says, or the original
    does, answered greedily, `batch_size` at once (None: what the pipe chooses). `progress`: None for a
    bar on a terminal, True, False, or a function (done, total). ValueError for a wrong option, and for a
    model of pictures below 64 pixels.
    """
    check_options(samples=samples, seed=seed, split=split, color=color, batch_size=batch_size)
    drawn, seen = picture_sides(pipe)
    reconstructions, drawings, answers = [], [], []
    kept = (False,) if color else (False, True)
    with Progress(len(kept) * 3 * samples, "task", progress) as bar:
        for held_out in kept:
            if held_out:
                prompts = shapes.held_out_prompts(samples, seed, split=split, side=drawn)
            else:
                prompts = shapes.seen_prompts(samples, seed, split=split, side=drawn, color=color)
            reconstructions.append(_drawing_scores(prompts, reconstruct(pipe, prompts, bar.advance)))
            drawings.append(_drawing_scores(prompts, draw(pipe, prompts, seed, batch_size, bar.advance)))
        for held_out in kept:
            questions = shapes.questions(
                samples, seed, held_out=held_out, split=split, side=seen, color=color
            )
            right = answer(pipe, questions, batch_size, bar.advance)
            answers.append(ListScores.of(_judged(questions, right), shapes.QUESTION_CATEGORIES))
    return Scores(
        reconstruction=PartScores(*reconstructions),
        drawing=PartScores(*drawings),
        answers=PartScores(*answers),
        samples=samples,
        seed=seed,
        split=split,
        color=color,
    )


def check_options(*, samples: int, seed: int, split: str, color: str | None, batch_size: int | None) -> None:
    """ValueError for what no model could be evaluated with."""
    require_whole("samples", samples, least=1)
    require_whole("seed", seed, least=0)
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: use 'validation' or 'test'")
    if color is not None:
        require_color(color)
    if batch_size is not None:
        require_whole("batch_size", batch_size, least=1)


def picture_sides(pipe: Any) -> tuple[int, int]:
    """The sides, in pixels, of the pictures that a model draws and of those that it sees.

    The world is drawn at both, so that no picture is resized. ValueError for one that it cannot be drawn at.
    """
    sides = pipe.config.picture_size, pipe.config.vision.image_size
    if min(sides) < LEAST_SIDE:
        raise ValueError(
            f"this model's pictures have a side of {min(sides)} pixels, and the world `shapes` needs "
            f"{LEAST_SIDE} or more: evaluate a model of larger pictures"
        )
    return sides


def reconstruct(pipe: Any, drawings: Sequence[Drawing], advance: Advance) -> list[bool]:
    """Whether the picture of each still is what its caption says, through codes or latents and back.

    One at a time: convolutions over more take as long, and round differently.
    """
    right = []
    for drawing in drawings:
        right.append(shapes.verify(np.asarray(pipe.reconstruct(drawing.picture)), drawing.spec))
        advance(1)
    return right


def draw(
    pipe: Any,
    drawings: Sequence[Drawing],
    seed: int,
    batch_size: int | None,
    advance: Advance = lambda count: None,
    **options: float,
) -> list[bool]:
    """Whether what the pipe draws of each caption is what it says; options are those of `Pipeline.draw`."""
    right: list[bool] = []
    for number, group in enumerate(_groups(drawings)):
        captions = [drawing.caption for drawing in group]
        pictures = pipe.draw(captions, seed=seed + number, batch_size=batch_size, progress=False, **options)
        for drawing, picture in zip(group, pictures, strict=True):
            right.append(shapes.verify(np.asarray(picture), drawing.spec))
        advance(len(group))
    return right


def answer(
    pipe: Any,
    questions: Sequence[Question],
    batch_size: int | None,
    advance: Advance = lambda count: None,
) -> list[bool]:
    """Whether the pipe's answer to each, the likeliest words in turn, is right."""
    right: list[bool] = []
    for group in _groups(questions):
        answers = pipe.chat(
            [_conversation(question) for question in group],
            max_new_tokens=MOST_ANSWER_TOKENS,
            batch_size=batch_size,
        )
        right += [shapes.correct(question, text) for question, text in zip(group, answers, strict=True)]
        advance(len(group))
    return right


def held_out_sheet(pipe: Any, *, count: int = 16, seed: int = 0, split: Split = "test") -> Image.Image:
    """What the model draws of the first held-out captions, unpicked, with the captions underneath.

    These are the first pictures that `evaluate` judges with the same seed: at most GROUP of them.
    """
    if require_whole("count", count, least=1) > GROUP:
        raise ValueError(f"count must be at most {GROUP}, the pictures of one seed, not {count}")
    drawn, _ = picture_sides(pipe)
    captions = [item.caption for item in shapes.held_out_prompts(count, seed, split=split, side=drawn)]
    return contact_sheet(pipe.draw(captions, seed=seed, progress=False), captions)


def _groups(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[first : first + GROUP] for first in range(0, len(items), GROUP))


def _judged(items: Sequence[Drawing | Question], right: Sequence[bool]) -> Iterator[Judged]:
    return ((item.category, item.held_out, is_right) for item, is_right in zip(items, right, strict=True))


def _drawing_scores(drawings: Sequence[Drawing], right: Sequence[bool]) -> ListScores:
    return ListScores.of(_judged(drawings, right), shapes.CATEGORIES)


def _conversation(question: Question) -> list[dict[str, Any]]:
    image = {"type": "image", "image": question.picture}
    return [{"role": "user", "content": [image, {"type": "text", "text": question.question}]}]
