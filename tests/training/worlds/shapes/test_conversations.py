"""Conversations without a picture: their answers, worked out again from the words of the question."""

import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from janus.training.worlds import shapes
from janus.training.worlds.shapes.parsing import parse, plain, tokens
from janus.training.worlds.shapes.scene import INVERSE, Thing
from janus.training.worlds.shapes.words import NOUNS, NUMBERS

SEEDS = st.integers(0, 2**32 - 1)
OPPOSITE = "what is the opposite of |name the opposite of "


def things_in(text: str) -> list[Thing]:
    things, count, color = [], 1, None
    for _, (what, value) in tokens(text):
        if what == "count":
            count = int(value or 0)
        elif what == "color":
            color = str(value)
        elif what in ("noun", "nouns"):
            things.append(Thing(value and str(value), color, count=count))
            count, color = 1, None
    return things


def expected_answer(question: str) -> str:
    """What a reader who knows the templates answers."""
    text = question.lower()
    if match := re.match(OPPOSITE, text):
        return INVERSE[plain(text[match.end() :])]
    if match := re.match(r"(?:how many words are in|how often does) this list(?: say (.+))?: (.+)\?", text):
        listed = match[2].split(", ")
        return NUMBERS[listed.count(match[1]) if match[1] else len(listed)]
    if "relative to" in text or "where is" in text:
        return expected_place(text)
    if match := re.match(r"what comes (after|before) (\w+)\?", text):
        return NUMBERS[NUMBERS.index(match[2]) + (1 if match[1] == "after" else -1)]
    if match := re.match(r"which is more, (\w+) or (\w+)\?", text):
        return NUMBERS[max(NUMBERS.index(match[1]), NUMBERS.index(match[2]))]
    if match := re.match(r"is (\w+) more than (\w+)\?", text):
        return "yes" if NUMBERS.index(match[1]) > NUMBERS.index(match[2]) else "no"
    if match := re.match(r"spell the number (\d+)\.", text):
        return NUMBERS[int(match[1])]
    return expected_from_list(*text.split(". ", 1))


def expected_place(text: str) -> str:
    """A line on which each stated thing is one step from the one before."""
    place = {}
    stated, asked = re.split(r", (?=where|relative)|\. ", text, maxsplit=1)
    direction = ""
    for statement in re.split(r" and ", re.sub(r"^(if|suppose) ", "", stated)):
        spec = parse(statement).canonical()
        direction = str(spec.relation)
        first, second = spec.things
        place.setdefault(first, place.get(second, 1) - 1)
        place.setdefault(second, place[first] + 1)
    if asked.startswith("relative"):
        asked = " ".join(reversed(asked.split(",")))
    named = things_in(asked)
    subject, other = named if len(named) == 2 else (named[0], next(one for one in place if one != named[0]))
    return direction if place[subject] < place[other] else INVERSE[direction]


def expected_from_list(listed: str, asked: str) -> str:
    things, named = things_in(listed), things_in(asked)
    if "fewer" in asked or "more" in asked:
        choose = min if "fewer" in asked else max
        shape = choose(things, key=lambda thing: thing.count).shape
        return NOUNS[str(shape)][0][1]
    if "color" in asked or "colour" in asked:
        return str(next(thing.color for thing in things if thing.shape == named[0].shape))
    if color := next((value for _, (what, value) in tokens(asked) if what == "color"), None):
        return str(next(thing.shape for thing in things if thing.color == color))
    if named and named[0].shape:
        return NUMBERS[next(thing.count for thing in things if thing.shape == named[0].shape)]
    return NUMBERS[sum(thing.count for thing in things)]


@given(SEEDS)
def test_the_answer_follows_from_the_question(seed: int) -> None:
    question, answer = shapes.text(default_rng(seed))
    assert answer == expected_answer(question), question


def test_conversations_vary() -> None:
    rng = default_rng(0)
    pairs = [shapes.text(rng) for _ in range(1000)]
    assert len(set(pairs)) > 800
    answers = Counter(answer for _, answer in pairs)
    assert {"left", "right", "above", "below", "yes", "no", *shapes.COLORS, *shapes.SHAPES} <= set(answers)
    assert max(answers.values()) < 200
