"""Whether an answer in free words is right: numbers, punctuation, case and synonyms count for nothing."""

import re
from collections.abc import Callable, Sequence

from janus.training.worlds.shapes.parsing import parse, plain, tokens
from janus.training.worlds.shapes.scene import INVERSE, Object, Spec, Thing
from janus.training.worlds.shapes.stream import Question
from janus.training.worlds.shapes.verifier import describe, verify
from janus.training.worlds.shapes.words import PLACE_WORDS

YES = {"yes", "yeah", "yep", "yup", "sure", "true"}
FLATLY = {"no", "none", "nope", "zero", "0", "nothing", "neither", "never", "false"}
NO = FLATLY | {"not", "cannot", "without", "t"}  # the last is of "isn't"
# With a negation: "I cannot say", "it isn't clear", "there is not enough light".
UNSURE = {"say", "tell", "know", "answer", "guess", "clear", "certain", "count", "read", "enough", "sure"}
UNKNOWING = {"idea", "way", "clue", "telling"}  # behind a flat no: "no idea"
CORNERS = {"top", "upper", "up", "bottom", "down"}  # another direction beside "left": "top left"


def correct(question: Question, answer: str) -> bool:
    """Whether a free-form answer is right.

    An answer that says more than one thing ("two or three", "red, no, blue"), or nothing ("I cannot say"), is
    wrong. "Describe" wants the color and the shape of every object, as `verify` reads them from the picture.
    ValueError for a category that is none of QUESTION_CATEGORIES.
    """
    if question.category not in _CHECKS:
        raise ValueError(f"category {question.category!r} is unknown: use one of {', '.join(_CHECKS)}")
    answer = re.sub(r"\b(for|to be) sure\b", "", re.sub(r"\bnot (one|a single)\b", "none", plain(answer)))
    return not _is_unsure(answer) and _CHECKS[question.category](question, answer)


def _is_unsure(answer: str) -> bool:
    """Whether it says that it says nothing; a flat no at its beginning says something."""
    words = answer.split()
    if words and words[0] in FLATLY:
        return words[1:2] != [] and words[1] in UNKNOWING
    return bool(set(words) & NO and set(words) & UNSURE) or "unsure" in words


def _count(question: Question, answer: str) -> bool:
    read = [(word, value) for word, (what, value) in tokens(answer) if what == "count"]
    numbers = {value for word, value in read if word not in ("a", "an")}
    if 0 in numbers and _words(answer) & (NO - FLATLY):
        return False  # "not zero"
    # "None", "no circles", "not any".
    numbers |= {0} if _words(answer) & NO else set()
    (wanted,) = {value for _, (what, value) in tokens(question.answer) if what == "count"}
    return numbers == {wanted}


def _color(question: Question, answer: str) -> bool:
    return _named(answer, "color") == {question.answer} and not _words(answer) & NO


def _shape(question: Question, answer: str) -> bool:
    return _named(answer, "noun") - {None} == {question.answer} and not _words(answer) & NO


def _named(answer: str, wanted: str) -> set[str | int | None]:
    return {value for _, (what, value) in tokens(answer) if what.removesuffix("s") == wanted}


def _exists(question: Question, answer: str) -> bool:
    words = _words(answer)
    if words & YES and words & NO:
        return False
    stated = re.match(r"(there (is|are)|i (see|do|can)|it does)\b", plain(answer))
    named = _mentions(plain(answer))
    elsewhere = named and not any(_is_of(about, thing) for about in question.about for thing in named)
    if stated and elsewhere and not words & (YES | NO):
        return False  # it speaks of something else
    verdict = "no" if words & NO else "yes" if words & YES or stated else None
    return verdict == question.answer


def _is_of(about: Thing, thing: Thing) -> bool:
    """Whether what an answer names can be what was asked about: it may say less of it, and nothing else."""
    same_shape = None in (about.shape, thing.shape) or about.shape == thing.shape
    return same_shape and (None in (about.color, thing.color) or about.color == thing.color)


def _words(answer: str) -> set[str]:
    return set(plain(answer).split())


def _where(question: Question, answer: str) -> bool:
    """One relation, alone or with what it is between: "left", "left of the star", "the star has it above"."""
    text = plain(answer)
    objects = describe(question.picture).objects
    subject, other = (_identify(thing, objects) for thing in question.about)
    if (spec := _stated(text)) is not None:
        first, second = (_identify(thing, objects) for thing in spec.things)
        assert spec.relation is not None
        stated = {(subject, other): spec.relation, (other, subject): INVERSE[spec.relation]}
        return stated.get((first, second)) == question.answer
    found = list(re.finditer(rf"\b({'|'.join(PLACE_WORDS)})\b", text))
    if len(found) != 1 or _words(answer) & (NO | CORNERS):
        return False
    name = PLACE_WORDS[found[0][0]]
    named = [_mentions(text[: found[0].start()]), _mentions(text[found[0].end() :])]
    if max(map(len, named)) > 1:
        return False
    before, after = (_identify(things[0], objects) if things else None for things in named)
    swapped = bool(named[0]) and before == other
    if swapped:
        subject, other = other, subject
    agrees = (not named[0] or before == subject) and (not named[1] or after == other)
    return agrees and (INVERSE[name] if swapped else name) == question.answer


def _stated(text: str) -> Spec | None:
    """What a caption says that tells how two things lie; None of all else."""
    try:
        spec = parse(text)
    except ValueError:
        return None
    return spec if spec.relation else None


def _mentions(text: str) -> list[Thing]:
    """The things that a text names, without their number."""
    things: list[Thing] = []
    color = None
    for _, (what, value) in tokens(text):
        if what == "color":
            color = value
        elif what in ("noun", "nouns"):
            things.append(Thing(value, color))  # type: ignore[arg-type]
            color = None
    return things


def _identify(thing: Thing, objects: Sequence[Object]) -> Object | None:
    """The one object that a thing can be."""
    fitting = [item for item in objects if thing.fits(item)]
    return fitting[0] if len(fitting) == 1 else None


def _describe(question: Question, answer: str) -> bool:
    try:
        spec = parse(answer)
    except ValueError:
        return False
    return all(thing.shape and thing.color for thing in spec.things) and verify(question.picture, spec)


_CHECKS: dict[str, Callable[[Question, str], bool]] = {
    "count_all": _count,
    "count_shape": _count,
    "count_kind": _count,
    "color": _color,
    "shape": _shape,
    "exists": _exists,
    "where": _where,
    "describe": _describe,
}
