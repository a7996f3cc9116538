"""A pipe that draws and answers what is true, but for the tasks that it is told to do wrong."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from janus.training.worlds import shapes

MOST = 72  # the longest list of questions that the fake pipe knows the answers to
Fails = Callable[[str, int], bool]


class FakePipe:
    """Each verb counts its tasks from 0, in the order in which they come; `fails` says which go wrong.

    What fails is drawn as an empty picture, or answered with "Perhaps.".
    """

    def __init__(self, fails: Fails, answers: Mapping[tuple[str, bytes], str], side: int) -> None:
        vision = SimpleNamespace(image_size=side)
        self.config = SimpleNamespace(picture_size=side, vision=vision)
        self.fails, self.answers = fails, answers
        self.empty = Image.new("RGB", (side, side), (128, 128, 128))
        self.done = {"reconstruct": 0, "draw": 0, "chat": 0}
        self.drawn: list[tuple[list[str], dict[str, Any]]] = []  # prompts and options, call by call
        self.asked: list[tuple[int, dict[str, Any]]] = []  # how many conversations, and options

    def _right(self, verb: str) -> bool:
        number = self.done[verb]
        self.done[verb] += 1
        return not self.fails(verb, number)

    def reconstruct(self, picture: np.ndarray) -> Image.Image:
        assert picture.shape == (self.config.picture_size, self.config.picture_size, 3)
        return Image.fromarray(picture) if self._right("reconstruct") else self.empty

    def draw(self, prompt: list[str], **options: Any) -> list[Image.Image]:
        self.drawn.append((prompt, options))
        side = self.config.picture_size
        return [draw_caption(each, side) if self._right("draw") else self.empty for each in prompt]

    def chat(self, messages: list[Any], **options: Any) -> list[str]:
        self.asked.append((len(messages), options))
        return [self._answer(each) if self._right("chat") else "Perhaps." for each in messages]

    def _answer(self, conversation: Sequence[Any]) -> str:
        (message,) = conversation
        image, text = message["content"]
        return self.answers[text["text"], image["image"].tobytes()]


def draw_caption(caption: str, side: int) -> Image.Image:
    """One of the many pictures for which a caption holds."""
    spec = shapes.parse(caption)
    things = [thing for thing in spec.things for _ in range(thing.count)]
    places = [(4, 4), (12, 12), (12, 4), (4, 12)]
    if spec.relation:
        places = [(4, 8), (12, 8)] if spec.relation in ("left", "right") else [(8, 4), (8, 12)]
    if spec.relation in ("right", "below"):
        places.reverse()
    scene = tuple(
        shapes.Object(thing.shape or "circle", thing.color or "red", thing.size or "large", *place)
        for thing, place in zip(things, places, strict=False)
    )
    return Image.fromarray(shapes.render(scene, side))


@pytest.fixture(scope="session")
def make_pipe() -> Callable[..., FakePipe]:
    """`make_pipe(fails=None, side=64)`: a pipe that does all right, or all but what fails."""
    answers = {
        (item.question, item.picture.tobytes()): item.answer
        for held_out in (False, True)
        for split in ("validation", "test")
        for color in (None, "orange")
        if not (held_out and color)
        for item in shapes.questions(MOST, 3, held_out=held_out, split=split, color=color)
    }

    def make(fails: Fails | None = None, side: int = shapes.SIDE) -> FakePipe:
        return FakePipe(fails or (lambda verb, number: False), answers, side)

    return make
