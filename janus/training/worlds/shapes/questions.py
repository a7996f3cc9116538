"""Questions about scenes, each with one answer that the picture decides.

The first question of a scene decides what the scene is like; others may be asked about it afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Generator

from janus.training.worlds.shapes.captions import vary_case
from janus.training.worlds.shapes.draws import pick
from janus.training.worlds.shapes.held_out import Reason
from janus.training.worlds.shapes.question_writers import FURTHER, WRITERS, Source
from janus.training.worlds.shapes.sampling import HeldOut, Places, choose_reason, require_category
from janus.training.worlds.shapes.scene import Scene, Thing

TAUGHT_CATEGORIES = tuple(WRITERS)
# What models are judged by, and training asks where nothing is chosen. The others teach where things lie, on
# the way to "where", which asks of two.
QUESTION_CATEGORIES = tuple(
    category for category in TAUGHT_CATEGORIES if category not in ("place", "extreme")
)


@dataclass(frozen=True)
class Asked:
    """A question about a scene; `about`: the things that it asks of, "where" its subject before the other."""

    scene: Scene
    question: str
    answer: str
    category: str
    about: tuple[Thing, ...]
    held_out: Reason | None


def ask(
    rng: Generator,
    category: str,
    *,
    held_out: HeldOut = False,
    color: str | None = None,
    places: Places = "grid",
    nameless: bool = False,
) -> Asked:
    """A question of a category about a new scene, which is held out or not as in `sample`.

    What is not held out does not name a kind that is. The questions of held-out scenes are about the objects
    that make them so, save those that ask about all objects or about what is absent. With `color` at least
    one object of the scene has it; with `nameless` things without a name of their own are among them
    (`any_kind`). ValueError for an unknown category or reason, and for what is nameless and held out.
    """
    require_category(category, tuple(WRITERS))
    source = Source(rng, choose_reason(rng, held_out, nameless=nameless), color, places, nameless)
    scene, question, answer, about = WRITERS[category](source)
    return Asked(scene, vary_case(rng, question), answer, category, about, source.wanted)


def ask_further(rng: Generator, first: Asked, count: int, categories: Sequence[str] = ()) -> list[Asked]:
    """Up to `count` questions about the scene of a first one; fewer where it suits fewer.

    Each is of a category of its own or, if some are given, of one of these; none is like another, or the
    first, in its category and what it is about, nor does it ask about two things the other way round, which
    the answer before gives away. As in `ask`, they name no kind that is held out unless the scene has it.
    ValueError for an unknown category.
    """
    for category in categories:
        require_category(category, TAUGHT_CATEGORIES)
    scene, reason = first.scene, first.held_out
    source = Source(rng, reason)
    if categories:
        chosen = [pick(rng, categories) for _ in range(count)]
    else:
        chosen = [QUESTION_CATEGORIES[number] for number in rng.permutation(len(QUESTION_CATEGORIES))[:count]]
    found = {_asked_of(first): first}
    for category in chosen:
        written = FURTHER[category](source, scene)
        if written is not None:
            _, question, answer, about = written
            asked = Asked(scene, vary_case(rng, question), answer, category, about, reason)
            found.setdefault(_asked_of(asked), asked)
    return list(found.values())[1:]


def _asked_of(asked: Asked) -> tuple[str, frozenset[int] | tuple[Thing, ...]]:
    """The category and what it is about: of places the objects, however they are named, in whatever order."""
    if asked.category not in ("where", "place"):
        return asked.category, asked.about
    fits = (number for number, item in enumerate(asked.scene) if any(each.fits(item) for each in asked.about))
    return asked.category, frozenset(fits)
