"""Questions about scenes, each with one answer that the picture decides.

The first question of a scene decides what the scene is like; others may be asked about it afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from janus.training.worlds.shapes.captions import describe_scene, name_noun, vary_case
from janus.training.worlds.shapes.draws import chance, pick, whole
from janus.training.worlds.shapes.held_out import (
    HELD_OUT_KINDS,
    Reason,
    is_held_out_pair,
)
from janus.training.worlds.shapes.question_texts import (
    ALL_NOUNS,
    COLOR,
    COUNT,
    DESCRIBE,
    EXISTS,
    MIDDLE,
    SHAPE,
    WHERE,
)
from janus.training.worlds.shapes.sampling import (
    MOST,
    HeldOut,
    Places,
    any_kind,
    choose_reason,
    draw_kinds,
    place,
    require_category,
)
from janus.training.worlds.shapes.scene import (
    COLORS,
    LATTICE,
    SHAPES,
    STATED_RATIO,
    Kind,
    Object,
    Scene,
    Thing,
    relation,
)
from janus.training.worlds.shapes.words import spell, with_article

REPEATED = 0.3  # how often a further object is of an earlier one's kind
NONE_AT_ALL = 0.12  # how often the answer to "how many" is zero


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
    require_category(category, tuple(_WRITERS))
    if nameless and held_out:
        raise ValueError(f"nameless and held_out {held_out!r} exclude each other: leave one out")
    source = _Source(rng, choose_reason(rng, held_out), color, places, nameless)
    scene, question, answer, about = _WRITERS[category](source)
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
    source = _Source(rng, reason)
    if categories:
        chosen = [pick(rng, categories) for _ in range(count)]
    else:
        chosen = [QUESTION_CATEGORIES[number] for number in rng.permutation(len(QUESTION_CATEGORIES))[:count]]
    found = {_asked_of(first): first}
    for category in chosen:
        written = _FURTHER[category](source, scene)
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


@dataclass(frozen=True)
class _Source:
    """Where the writers of questions get scenes from."""

    rng: Generator
    wanted: Reason | None
    color: str | None = None
    places: Places = "grid"
    nameless: bool = False

    def kind(self, color: str | None = None) -> Kind:
        return any_kind(self.rng, color, self.nameless)

    def count(self, least: int = 1) -> int:
        return whole(self.rng, max(least, 2 if self.wanted == "pair" else 1), MOST)

    def scene(self, propose: Callable[[], list[Kind]]) -> Scene:
        return place(self.rng, draw_kinds(propose, self.wanted), places=self.places)

    def mixed(self, count: int) -> Scene:
        """Objects of any kinds, some of them alike."""

        def propose() -> list[Kind]:
            kinds = [self.kind(self.color)]
            for _ in range(count - 1):
                kinds.append(pick(self.rng, kinds) if chance(self.rng, REPEATED) else self.kind())
            return kinds

        return self.scene(propose)

    def subjects(self, scene: Scene) -> Sequence[Object]:
        """What a question may be about: in a held-out scene, the objects that make it so."""
        if self.wanted == "kind":
            return [item for item in scene if item.kind in HELD_OUT_KINDS]
        if self.wanted == "pair":
            return [
                item
                for item in scene
                if any(other is not item and is_held_out_pair(item.kind, other.kind) for other in scene)
            ]
        return scene


Written = tuple[Scene, str, str, tuple[Thing, ...]]
About = Callable[[_Source, Scene], Written | None]


def _count_all(source: _Source) -> Written:
    return _count_all_in(source, source.mixed(source.count()))


def _count_all_in(source: _Source, scene: Scene) -> Written:
    question = pick(source.rng, COUNT).format(pick(source.rng, ALL_NOUNS))
    return scene, question, spell(len(scene)), ()


def _count_shape(source: _Source) -> Written:
    def others(target: Kind) -> Kind:
        return pick(source.rng, COLORS), pick(source.rng, [shape for shape in SHAPES if shape != target[1]])

    def same(target: Kind) -> Kind:
        return pick(source.rng, COLORS), target[1]

    scene, (_, shape), count = _counted(source, same, others)
    return _ask_count(source, scene, Thing(shape), count)


def _count_kind(source: _Source) -> Written:
    def others(target: Kind) -> Kind:
        while True:
            kind = pick(source.rng, COLORS), pick(source.rng, SHAPES)
            # Every other one shares a colour or a shape with what is counted: it takes both to tell.
            if chance(source.rng, 0.5):
                kind = (target[0], kind[1]) if chance(source.rng, 0.5) else (kind[0], target[1])
            if kind != target:
                return kind

    scene, (color, shape), count = _counted(source, lambda target: target, others)
    return _ask_count(source, scene, Thing(shape, color), count)


def _counted(
    source: _Source, same: Callable[[Kind], Kind], others: Callable[[Kind], Kind]
) -> tuple[Scene, Kind, int]:
    """A scene, a kind, and how many objects are the same as it: each number alike, zero less often."""
    free = source.wanted is None and source.color is None
    count = 0 if free and chance(source.rng, NONE_AT_ALL) else whole(source.rng, 1, MOST)
    target = any_kind(source.rng)

    def propose() -> list[Kind]:
        nonlocal target
        target = source.kind(source.color if count else None)
        further = whole(source.rng, 0 if count else 1, MOST - count)
        alike = [target] + [same(target) for _ in range(count - 1)] if count else []
        return alike + [others(target) for _ in range(further)]

    while True:
        scene = source.scene(propose)
        fine = target not in HELD_OUT_KINDS if count == 0 else scene[0] in source.subjects(scene)
        if fine:
            return scene, target, count


def _count_shape_in(source: _Source, scene: Scene) -> Written:
    absent = chance(source.rng, NONE_AT_ALL)
    shape = pick(source.rng, SHAPES) if absent else pick(source.rng, scene).shape
    return _ask_count(source, scene, Thing(shape), sum(item.shape == shape for item in scene))


def _count_kind_in(source: _Source, scene: Scene) -> Written | None:
    kind = any_kind(source.rng) if chance(source.rng, NONE_AT_ALL) else pick(source.rng, scene).kind
    count = sum(item.kind == kind for item in scene)
    if count == 0 and kind in HELD_OUT_KINDS:
        return None
    return _ask_count(source, scene, Thing(kind[1], kind[0]), count)


def _ask_count(source: _Source, scene: Scene, thing: Thing, count: int) -> Written:
    question = pick(source.rng, COUNT).format(_words(source.rng, thing, plural=True))
    return scene, question, spell(count), (thing,)


def _color(source: _Source) -> Written:
    return _about_some(source, _color_in)


def _color_in(source: _Source, scene: Scene) -> Written | None:
    item = _alone(source, scene, lambda item: item.shape)
    if item is None:
        return None
    thing = Thing(item.shape)
    return scene, pick(source.rng, COLOR).format(_words(source.rng, thing)), item.color, (thing,)


def _shape(source: _Source) -> Written:
    return _about_some(source, _shape_in)


def _shape_in(source: _Source, scene: Scene) -> Written | None:
    item = _alone(source, scene, lambda item: item.color)
    if item is None:
        return None
    thing = Thing(color=item.color)
    # "What shape is the red shape" would be no question.
    words = f"{item.color} {pick(source.rng, ('object', 'object', 'thing', 'figure'))}"
    return scene, pick(source.rng, SHAPE).format(words), item.shape, (thing,)


def _about_some(source: _Source, about: About, least: int = 1) -> Written:
    """A question about the first scene of a number of objects that it can be asked about."""
    count = source.count(least)
    while True:
        written = about(source, source.mixed(count))
        if written is not None:
            return written


def _alone(source: _Source, scene: Scene, attribute: Callable[[Object], str]) -> Object | None:
    """One of the objects that are alone in having their attribute."""
    values = [attribute(item) for item in scene]
    alone = [item for item in source.subjects(scene) if values.count(attribute(item)) == 1]
    return pick(source.rng, alone) if alone else None


def _exists(source: _Source) -> Written:
    yes, named, count = chance(source.rng, 0.5), source.rng.random(), source.count()
    while True:
        written = _exists_in(source, source.mixed(count), yes, named)
        if written is not None:
            return written


def _exists_in(source: _Source, scene: Scene, yes: bool, named: float) -> Written | None:
    """`named`, up to 1: what the question names, both attributes below a half, else one of them."""
    rng = source.rng
    if yes:
        color, shape = pick(rng, source.subjects(scene)).kind
    else:
        # Half of what is absent has a colour and a shape that are there, on two objects.
        color, shape = any_kind(rng)
        if chance(rng, 0.5):
            color, shape = pick(rng, scene).color, pick(rng, scene).shape
    thing = Thing(shape if named < 0.75 else None, color if named < 0.5 or named >= 0.75 else None)
    if any(thing.fits(item) for item in scene) != yes or (not yes and thing.kind in HELD_OUT_KINDS):
        return None
    words, plural = _words(rng, thing), _words(rng, thing, plural=True)
    question = pick(rng, EXISTS).format(a=with_article(words), plural=plural)
    return scene, question, "yes" if yes else "no", (thing,)


def _exists_further(source: _Source, scene: Scene) -> Written | None:
    """Tried several times, as what is to be absent is often there: yes and no come about alike."""
    yes, named = chance(source.rng, 0.5), source.rng.random()
    tries = (_exists_in(source, scene, yes, named) for _ in range(8))
    return next((written for written in tries if written is not None), None)


def _where(source: _Source) -> Written:
    return _about_some(source, _where_in, least=2)


def _where_in(source: _Source, scene: Scene) -> Written | None:
    rng = source.rng
    first, second = pick(rng, source.subjects(scene)), pick(rng, scene)
    answer = relation(first, second, STATED_RATIO)
    names = [_references(scene, item) for item in (first, second)]
    if answer is None or not all(names):
        return None
    about = pick(rng, names[0]), pick(rng, names[1])
    words = [_words(rng, thing) for thing in about]
    return scene, pick(rng, WHERE).format(a=words[0], b=words[1]), answer, about


def _place(source: _Source) -> Written:
    return _about_some(source, _place_in)


def _place_in(source: _Source, scene: Scene) -> Written | None:
    """As "where", from the middle of the picture: of one thing, before there are two to be told apart."""
    rng = source.rng
    item = pick(rng, source.subjects(scene))
    middle = Object("circle", "black", "small", LATTICE / 2, LATTICE / 2)
    answer, names = relation(item, middle, STATED_RATIO), _references(scene, item)
    if answer is None or not names:
        return None
    about = pick(rng, names)
    question = pick(rng, WHERE).format(a=_words(rng, about), b=pick(rng, MIDDLE))
    return scene, question, answer, (about,)


def _references(scene: Scene, item: Object) -> list[Thing]:
    """The ways of naming an object that fit no other."""
    ways = [Thing(item.shape), Thing(color=item.color), Thing(item.shape, item.color)]
    return [thing for thing in ways if sum(thing.fits(other) for other in scene) == 1]


def _describe(source: _Source) -> Written:
    return _describe_in(source, source.mixed(source.count()))


def _describe_in(source: _Source, scene: Scene) -> Written:
    return scene, pick(source.rng, DESCRIBE), describe_scene(scene), ()


def _words(rng: Generator, thing: Thing, *, plural: bool = False) -> str:
    noun = name_noun(rng, Thing(thing.shape, count=2 if plural else 1))
    return f"{thing.color} {noun}" if thing.color else noun


_WRITERS: dict[str, Callable[[_Source], Written]] = {
    "count_all": _count_all,
    "count_shape": _count_shape,
    "count_kind": _count_kind,
    "color": _color,
    "shape": _shape,
    "exists": _exists,
    "where": _where,
    "describe": _describe,
    "place": _place,
}
# The same questions about a scene that is there already; None where they cannot be asked about it.
_FURTHER: dict[str, About] = {
    "count_all": _count_all_in,
    "count_shape": _count_shape_in,
    "count_kind": _count_kind_in,
    "color": _color_in,
    "shape": _shape_in,
    "exists": _exists_further,
    "where": _where_in,
    "describe": _describe_in,
    "place": _place_in,
}
TAUGHT_CATEGORIES = tuple(_WRITERS)
# What models are judged by, and training asks where nothing is chosen.
QUESTION_CATEGORIES = tuple(category for category in TAUGHT_CATEGORIES if category != "place")
