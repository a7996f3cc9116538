"""What a picture nearly shows: all that is named is in it, and what is said of that is not so.

Colors that two things have exchanged, or a relation the other way round. Such captions, and no others, tell
whoever knows which words belong together from whoever knows which words there are (Yuksekgonul et al., "When
and why vision-language models behave like bags-of-words, and what to do about it?", 2023).
"""

from __future__ import annotations

from dataclasses import replace

from numpy.random import Generator

from janus.training.worlds.shapes.draws import pick
from janus.training.worlds.shapes.held_out import held_out_reason
from janus.training.worlds.shapes.scene import INVERSE, Meaning, Spec, holds

MISTAKABLE = ("position", "color_attribution", "full")  # the categories that can be mistaken


def mistake(rng: Generator, meaning: Meaning) -> Spec | None:
    """A specification that is wrong of the scene in this way alone, one of all alike; None if there is none.

    It names nothing that is held out of training.
    """
    spec, found = meaning.spec, []
    if len(spec.things) == 2:
        first, second = spec.things
        exchanged = (replace(first, color=second.color), replace(second, color=first.color))
        found.append(Spec(exchanged, spec.relation))
    if spec.relation is not None:
        found.append(Spec(spec.things, INVERSE[spec.relation]))
    usable = [
        each for each in found if held_out_reason(each.kinds) is None and not holds(each, meaning.scene)
    ]
    return pick(rng, tuple(usable)) if usable else None
