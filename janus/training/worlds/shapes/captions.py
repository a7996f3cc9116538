"""Captions in varied English from a specification.

What is written here, `parsing.parse` reads, but for the two words for what is nameless.
"""

import re

from numpy.random import Generator

from janus.training.worlds.shapes.draws import chance, pick
from janus.training.worlds.shapes.scene import INVERSE, Scene, Spec, Thing
from janus.training.worlds.shapes.words import (
    ITS_PHRASES,
    REGION_PHRASES,
    RELATION_PHRASES,
    SIZE_WORDS,
    join_list,
    nouns_of,
    plain_name,
    spell,
    with_article,
)

FRAMES = (
    "{}",
    "a picture of {}",
    "a picture with {}",
    "an image of {}",
    "an image showing {}",
    "a photo of {}",
    "a drawing of {}",
    "draw {}",
    "please draw {}",
    "paint {}",
    "show {}",
    "show me {}",
    "make a picture of {}",
    "i want {}",
    "{} on a gray background",
    "{} on a grey background",
    "there {are} {}",
    "in this picture there {are} {}",
    "the picture shows {}",
    "nothing but {}",
)
LISTS = (
    "{} and {}",
    "{} and {}",
    "{} with {}",
    "{} together with {}",
    "{} along with {}",
    "{} as well as {}",
    "both {} and {}",
)
# What {a} and {b} are, and that {a} lies to {b} as {rel} says, or {b} to {a} as {its} says.
RELATED = (
    "{a} {rel} {b}",
    "{a} {rel} {b}",
    "{a} and {its} {b}",
    "{a} with {b} {its}",
    "{a} that has {b} {its}",
)
RELATED_SENTENCES = ("{a} is {rel} {b}", "{rel} {b} is {a}", "{rel} {b} there is {a}", "{a} has {b} {its}")
PLAIN_FRAME = 0.5


def caption(rng: Generator, spec: Spec) -> str:
    """What a specification says, in words that vary."""
    things = list(spec.things)
    if spec.relation is not None:
        text = _related(rng, spec)
    else:
        order = rng.permutation(len(things)) if len(things) > 1 else [0]
        phrases = [name_thing(rng, things[number]) for number in order]
        text = pick(rng, LISTS).format(*phrases) if len(phrases) == 2 else join_list(phrases)
        text = _framed(rng, text, plural=things[order[0]].count > 1)
    return vary_case(rng, text)


def _related(rng: Generator, spec: Spec) -> str:
    (first, second), relation = spec.things, spec.relation
    assert relation is not None
    if chance(rng, 0.5):
        first, second, relation = second, first, INVERSE[relation]
    sentence = chance(rng, 0.3)
    text = pick(rng, RELATED_SENTENCES if sentence else RELATED).format(
        a=name_thing(rng, first),
        b=name_thing(rng, second),
        rel=pick(rng, RELATION_PHRASES[relation]),
        its=pick(rng, ITS_PHRASES[INVERSE[relation]]),
    )
    return text if sentence else _framed(rng, text, plural=False)


def _framed(rng: Generator, text: str, *, plural: bool) -> str:
    if chance(rng, PLAIN_FRAME):
        return text
    return pick(rng, FRAMES).format(text, are="are" if plural else "is")


def name_thing(rng: Generator, thing: Thing) -> str:
    """A noun phrase with its article or number: "a small red disc", "three stars that are blue".

    Behind it stands where it is, if the thing says so.
    """
    noun = name_noun(rng, thing)
    size = [pick(rng, SIZE_WORDS[thing.size])] if thing.size else []
    color = [thing.color] if thing.color else []
    behind = ""
    if color and chance(rng, 0.12):
        behind = f" {pick(rng, ('that are' if thing.count > 1 else 'that is', 'in'))} {color.pop()}"
    words = " ".join([*size, *color, noun])
    if thing.region:
        behind += f" {pick(rng, REGION_PHRASES[thing.region])}"
    return f"{_counted(rng, words, thing.count)}{behind}"


def name_noun(rng: Generator, thing: Thing) -> str:
    """The noun alone, in the number of the thing's count; mostly the plain one."""
    nouns = nouns_of(thing.shape)
    return (nouns[0] if chance(rng, 0.75) else pick(rng, nouns))[thing.count > 1]


def _counted(rng: Generator, words: str, count: int) -> str:
    style = rng.random()
    if count == 1:
        return with_article(words) if style < 0.85 else f"{'one' if style < 0.95 else 'a single'} {words}"
    if count == 2 and style < 0.1:
        return f"a pair of {words}"
    if style < 0.2:
        return f"exactly {spell(count)} {words}"
    return f"{count if style < 0.35 else spell(count)} {words}"


def vary_case(rng: Generator, text: str) -> str:
    """Mostly as it is; as sentences, or in capitals, now and then."""
    style = rng.random()
    if style < 0.8:
        return text
    if style >= 0.97:
        return text.upper()
    sentences = re.sub(r"(^|[.?] )([a-z])", lambda match: match[1] + match[2].upper(), text)
    return sentences if style < 0.9 or text[-1] in ".?" else f"{sentences}."


def describe_scene(scene: Scene) -> str:
    """All that is in a scene, in one way only: in the order of reading, those of one kind together."""
    counts: dict[tuple[str, str], int] = {}
    for item in sorted(scene, key=lambda item: (item.y, item.x)):
        counts[item.kind] = counts.get(item.kind, 0) + 1
    phrases = []
    for (color, shape), count in counts.items():
        words = f"{color} {plain_name(shape, plural=count > 1)}"
        phrases.append(with_article(words) if count == 1 else f"{spell(count)} {words}")
    return join_list(phrases)
