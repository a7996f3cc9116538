"""What a caption, or an answer that describes a picture, specifies."""

import re
from functools import cache

from janus.training.worlds.shapes.captions import FRAMES, LISTS, RELATED, RELATED_SENTENCES
from janus.training.worlds.shapes.scene import COLORS, INVERSE, NEW_COLORS, Spec, Thing
from janus.training.worlds.shapes.words import (
    ANY_NOUNS,
    ITS_PHRASES,
    NOUNS,
    NUMBERS,
    REGION_PHRASES,
    RELATION_PHRASES,
    SIZE_WORDS,
)

# Words that say nothing of what there is, beside those that stand around the places of the captions' frames.
FILLERS = ("the", "is", "are", "exactly", "just", "only", "that is", "that are", "in", "i see", "it shows")

Token = tuple[str, str | int | None]  # what a phrase is, and what it stands for


def plain(text: str) -> str:
    """Lower case, without punctuation, single spaces."""
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", text.lower()).split())


@cache
def _lexicon() -> dict[str, Token]:
    places = re.compile(r"\{\w*\}")
    fillers = [
        part for frame in (*FRAMES, *LISTS, *RELATED, *RELATED_SENTENCES) for part in places.split(frame)
    ]
    words: dict[str, Token] = {part.strip(): ("filler", None) for part in fillers if part.strip()}
    words |= dict.fromkeys(FILLERS, ("filler", None))
    words |= {name: ("count", number) for number, name in enumerate(NUMBERS)}
    words |= {str(number): ("count", number) for number in range(len(NUMBERS))}
    words |= {"a": ("count", 1), "an": ("count", 1), "a single": ("count", 1), "a pair of": ("count", 2)}
    words |= {color: ("color", color) for color in COLORS + NEW_COLORS}
    words |= {word: ("size", size) for size, names in SIZE_WORDS.items() for word in names}
    for shape, nouns in (*NOUNS.items(), (None, ANY_NOUNS)):
        for singular, plural in nouns:
            words |= {singular: ("noun", shape), plural: ("nouns", shape)}
    words |= {phrase: ("relation", name) for name, all_ in RELATION_PHRASES.items() for phrase in all_}
    words |= {phrase: ("region", name) for name, all_ in REGION_PHRASES.items() for phrase in all_}
    words |= {phrase: ("its", name) for name, phrases in ITS_PHRASES.items() for phrase in phrases}
    return words


@cache
def _pattern() -> re.Pattern[str]:
    """The longest phrase of the lexicon at a place, or else any word."""
    phrases = sorted(_lexicon(), key=len, reverse=True)
    return re.compile("|".join(rf"\b{phrase}\b" for phrase in phrases) + r"|\S+")


def tokens(text: str) -> list[tuple[str, Token]]:
    """The phrases of a text with what they are; ("unknown", None) for a word that the world does not have."""
    return [(word, _lexicon().get(word, ("unknown", None))) for word in _pattern().findall(plain(text))]


def parse(text: str) -> Spec:
    """The specification that a caption states. ValueError if it has unknown words or states none clearly."""
    reader = _Reader(text)
    for word, (what, value) in tokens(text):
        reader.take(word, what, value)
    return reader.finish()


class _Reader:
    """What is read so far: things, the words for the next one, and the relation with where it stood."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.things: list[dict[str, str | int | None]] = []
        self.waiting: dict[str, str | int | None] = {}
        self.relation: tuple[str, str, int] | None = None

    def take(self, word: str, what: str, value: str | int | None) -> None:
        if what == "unknown":
            raise self._error(f"the world has no word {word!r}")
        if what in ("color", "size"):
            self._wait(what, value)
        elif what == "count":
            self._attach()
            self._wait(what, value)
        elif what in ("noun", "nouns"):
            self._name(what == "nouns", value)
        elif what == "region":
            self._attach()
            self._wait(what, value)
            self._attach()
        elif what in ("relation", "its"):
            self._attach()
            if self.relation is not None:
                raise self._error("it has two relations")
            self.relation = what, str(value), len(self.things)

    def finish(self) -> Spec:
        self._attach()
        if not self.things:
            raise self._error("it names no thing")
        try:
            things = tuple(Thing(**thing) for thing in self.things)  # type: ignore[arg-type]
            return Spec(*self._order(things))
        except ValueError as error:
            raise self._error(str(error)) from None

    def _wait(self, what: str, value: str | int | None) -> None:
        if what in self.waiting:
            raise self._error(f"it has two words of {what} for one thing")
        self.waiting[what] = value

    def _name(self, plural: bool, shape: str | int | None) -> None:
        if plural and "count" not in self.waiting:
            raise self._error("it does not say how many")
        self.things.append({"shape": shape, **self.waiting})
        self.waiting = {}

    def _attach(self) -> None:
        """Attributes without a noun of their own belong to the thing before them: "a circle that is red"."""
        if not self.waiting:
            return
        if not self.things or self.waiting.keys() & self.things[-1].keys() or "count" in self.waiting:
            raise self._error(f"it has no noun for {' '.join(map(str, self.waiting.values()))!r}")
        self.things[-1] |= self.waiting
        self.waiting = {}

    def _order(self, things: tuple[Thing, ...]) -> tuple[tuple[Thing, ...], str | None]:
        if self.relation is None:
            return things, None
        what, name, place = self.relation
        if what == "relation" and place == 1:
            return things, name
        # "left of a square is a circle", "a square with a circle to its left": of the second thing.
        if (what == "relation") == (place == 0):
            return things, INVERSE[name]
        raise ValueError("its relation does not stand with two things")

    def _error(self, why: str) -> ValueError:
        return ValueError(f"the caption {self.text!r} cannot be read: {why}")
