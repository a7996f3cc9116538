"""What training and evaluation take from the world; each item is a function of its Generator, or seed, alone.

S: a picture's side.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.random import Generator, default_rng

from janus.checks import require_whole
from janus.training.worlds.shapes.captions import caption
from janus.training.worlds.shapes.conversations import text
from janus.training.worlds.shapes.draws import pick, whole
from janus.training.worlds.shapes.held_out import Reason
from janus.training.worlds.shapes.questions import QUESTION_CATEGORIES, Asked, ask, ask_further
from janus.training.worlds.shapes.raster import SIDE, Picture, render
from janus.training.worlds.shapes.sampling import (
    CATEGORIES,
    COLORED,
    NAMING,
    HeldOut,
    Places,
    Sample,
    sample,
)
from janus.training.worlds.shapes.scene import Meaning, Spec, Thing

Split = Literal["validation", "test"]
SPLITS = ("validation", "test")
MOST_TURNS = 8


@dataclass(frozen=True, eq=False)
class Drawing:
    """A caption, a picture (S, S, 3) uint8 for which it holds; `held_out`: why it is not for training.

    `meaning` tells which other captions hold for the picture.
    """

    caption: str
    picture: Picture
    meaning: Meaning
    category: str
    held_out: Reason | None

    @property
    def spec(self) -> Spec:
        """What the caption says."""
        return self.meaning.spec


@dataclass(frozen=True, eq=False)
class Question:
    """A question about a picture (S, S, 3) uint8 and the short answer that the world gives.

    `about`: the things that it names, "where" its subject before what it is seen from.
    """

    picture: Picture
    question: str
    answer: str
    category: str
    about: tuple[Thing, ...]
    held_out: Reason | None


@dataclass(frozen=True, eq=False)
class Conversation:
    """A picture (S, S, 3) uint8, and questions about it with their short answers, one after another."""

    picture: Picture
    turns: tuple[tuple[str, str], ...]


def drawing(
    rng: Generator,
    *,
    held_out: HeldOut = False,
    category: str | None = None,
    color: str | None = None,
    places: Places = "grid",
    nameless: bool = False,
    side: int = SIDE,
) -> Drawing:
    """A captioned picture; without a category, one of all alike. Options and errors as in `sample`."""
    chosen = category or pick(rng, CATEGORIES)
    return _draw(
        rng, sample(rng, chosen, held_out=held_out, color=color, places=places, nameless=nameless), side
    )


def question(
    rng: Generator,
    *,
    held_out: HeldOut = False,
    category: str | None = None,
    color: str | None = None,
    side: int = SIDE,
) -> Question:
    """A question about a picture; without a category, one of all alike. Options and errors as in `ask`."""
    return _show(ask(rng, category or pick(rng, QUESTION_CATEGORIES), held_out=held_out, color=color), side)


def conversation(
    rng: Generator,
    *,
    categories: Sequence[str] = (),
    color: str | None = None,
    places: Places = "grid",
    nameless: bool = False,
    side: int = SIDE,
) -> Conversation:
    """A picture for training and up to MOST_TURNS questions about it, the first as `question` asks it.

    With `categories` all are of these, as many as the picture suits. A picture costs a model of this size
    four times as many tokens as a question: several share it. A description answers all others, and whoever
    has read it need not look: it comes last, or by itself.
    """
    category = pick(rng, categories or QUESTION_CATEGORIES)
    first = ask(rng, category, color=color, places=places, nameless=nameless)
    further: list[Asked] = []
    if first.category != "describe":
        count = MOST_TURNS - 1 if categories else whole(rng, 0, MOST_TURNS - 1)
        further = ask_further(rng, first, count, categories)
    asked = [first, *sorted(further, key=lambda each: each.category == "describe")]
    return Conversation(render(first.scene, side), tuple((each.question, each.answer) for each in asked))


def seen_prompts(
    count: int, seed: int, *, split: Split = "test", side: int = SIDE, color: str | None = None
) -> list[Drawing]:
    """Drawings of combinations that training sees, the categories in turn; a shorter list begins a longer.

    With a color it is in all of them, and the categories are those that name colors.
    """
    categories = CATEGORIES if color is None else COLORED
    return [
        drawing(rng, category=categories[number % len(categories)], side=side, color=color)
        for number, rng in enumerate(_generators(_listed("seen prompts", color), count, seed, split))
    ]


def held_out_prompts(count: int, seed: int, *, split: Split = "test", side: int = SIDE) -> list[Drawing]:
    """Drawings whose captions name what is held out: a kind and a pair in turn, of each the categories.

    The categories are those that name colors (`NAMING`): in the words of the others nothing is new. A
    shorter list begins a longer one.
    """
    drawings = []
    for number, rng in enumerate(_generators("held-out prompts", count, seed, split)):
        reason: Reason = "pair" if number % 2 else "kind"
        category = NAMING[reason][number // 2 % len(NAMING[reason])]
        drawings.append(drawing(rng, held_out=reason, category=category, side=side))
    return drawings


def questions(
    count: int,
    seed: int,
    *,
    held_out: bool,
    split: Split = "test",
    side: int = SIDE,
    color: str | None = None,
) -> list[Question]:
    """Questions about scenes that training could see or that are held out, the categories in turn.

    With a color it is in all scenes. A shorter list begins a longer one.
    """
    name = _listed("held-out questions" if held_out else "seen questions", color)
    return [
        question(
            rng,
            held_out=held_out,
            category=QUESTION_CATEGORIES[number % len(QUESTION_CATEGORIES)],
            color=color,
            side=side,
        )
        for number, rng in enumerate(_generators(name, count, seed, split))
    ]


def vocabulary_texts(count: int, seed: int) -> Iterator[str]:
    """What a tokenizer of the world's English is trained on: captions, questions, answers, conversations."""
    require_whole("count", count, least=0)
    rng = default_rng([require_whole("seed", seed, least=0), zlib.crc32(b"vocabulary")])
    for number in range(count):
        if number % 3 == 0:
            yield caption(rng, sample(rng, pick(rng, CATEGORIES)).spec)
        elif number % 3 == 1:
            asked = ask(rng, pick(rng, QUESTION_CATEGORIES))
            yield f"{asked.question} {asked.answer}"
        else:
            yield " ".join(text(rng))


def _draw(rng: Generator, drawn: Sample, side: int) -> Drawing:
    picture = render(drawn.scene, side)
    meaning = Meaning(drawn.spec, drawn.scene)
    return Drawing(caption(rng, drawn.spec), picture, meaning, drawn.category, drawn.held_out)


def _show(asked: Asked, side: int) -> Question:
    picture = render(asked.scene, side)
    return Question(picture, asked.question, asked.answer, asked.category, asked.about, asked.held_out)


def _listed(name: str, color: str | None) -> str:
    return name if color is None else f"{name} with {color}"


def _generators(name: str, count: int, seed: int, split: str) -> Iterator[Generator]:
    """A Generator for each item of a list; those of two lists or of two splits have no seed in common."""
    require_whole("count", count, least=0)
    require_whole("seed", seed, least=0)
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: use 'validation' or 'test'")
    tag = zlib.crc32(f"{name} of {split}".encode())
    return (default_rng([seed, tag, number]) for number in range(count))
