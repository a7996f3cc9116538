"""Who writes questions, by category: of a new scene that suits them, and of one that is there already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from janus.training.worlds.shapes.captions import describe_scene, name_noun
from janus.training.worlds.shapes.draws import chance, pick, whole
from janus.training.worlds.shapes.held_out import HELD_OUT_KINDS, Reason, is_held_out_pair
from janus.training.worlds.shapes.question_texts import (
    ALL_NOUNS,
    COLOR,
    COUNT,
    DESCRIBE,
    EXISTS,
    EXTREME,
    FARTHEST,
    MIDDLE,
    SHAPE,
    WHERE,
)
from janus.training.worlds.shapes.sampling import MOST, Places, any_kind, draw_kinds, place
from janus.training.worlds.shapes.scene import (
    COLORS,
    LATTICE,
    RELATIONS,
    SHAPES,
    STATED_RATIO,
    Kind,
    Object,
    Scene,
    Thing,
    relation,
)
from janus.training.worlds.shapes.words import plain_name, spell, with_article

REPEATED = 0.3  # how often a further object is of an earlier one's kind
NONE_AT_ALL = 0.12  # how often the answer to "how many" is zero
CLEARLY = 1.5  # lattice steps by which what is farthest along an axis is ahead of the next


@dataclass(frozen=True)
class Source:
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
About = Callable[[Source, Scene], Written | None]


def _count_all(source: Source) -> Written:
    return _count_all_in(source, source.mixed(source.count()))


def _count_all_in(source: Source, scene: Scene) -> Written:
    question = pick(source.rng, COUNT).format(pick(source.rng, ALL_NOUNS))
    return scene, question, spell(len(scene)), ()


def _count_shape(source: Source) -> Written:
    def others(target: Kind) -> Kind:
        return pick(source.rng, COLORS), pick(source.rng, [shape for shape in SHAPES if shape != target[1]])

    def same(target: Kind) -> Kind:
        return pick(source.rng, COLORS), target[1]

    scene, (_, shape), count = _counted(source, same, others)
    return _ask_count(source, scene, Thing(shape), count)


def _count_kind(source: Source) -> Written:
    def others(target: Kind) -> Kind:
        while True:
            kind = pick(source.rng, COLORS), pick(source.rng, SHAPES)
            # Every other one shares a color or a shape with what is counted: it takes both to tell.
            if chance(source.rng, 0.5):
                kind = (target[0], kind[1]) if chance(source.rng, 0.5) else (kind[0], target[1])
            if kind != target:
                return kind

    scene, (color, shape), count = _counted(source, lambda target: target, others)
    return _ask_count(source, scene, Thing(shape, color), count)


def _counted(
    source: Source, same: Callable[[Kind], Kind], others: Callable[[Kind], Kind]
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


def _count_shape_in(source: Source, scene: Scene) -> Written:
    absent = chance(source.rng, NONE_AT_ALL)
    shape = pick(source.rng, SHAPES) if absent else pick(source.rng, scene).shape
    return _ask_count(source, scene, Thing(shape), sum(item.shape == shape for item in scene))


def _count_kind_in(source: Source, scene: Scene) -> Written | None:
    kind = any_kind(source.rng) if chance(source.rng, NONE_AT_ALL) else pick(source.rng, scene).kind
    count = sum(item.kind == kind for item in scene)
    if count == 0 and kind in HELD_OUT_KINDS:
        return None
    return _ask_count(source, scene, Thing(kind[1], kind[0]), count)


def _ask_count(source: Source, scene: Scene, thing: Thing, count: int) -> Written:
    question = pick(source.rng, COUNT).format(_words(source.rng, thing, plural=True))
    return scene, question, spell(count), (thing,)


def _color(source: Source) -> Written:
    return _about_some(source, _color_in)


def _color_in(source: Source, scene: Scene) -> Written | None:
    item = _alone(source, scene, lambda item: item.shape)
    if item is None:
        return None
    thing = Thing(item.shape)
    return scene, pick(source.rng, COLOR).format(_words(source.rng, thing)), item.color, (thing,)


def _shape(source: Source) -> Written:
    return _about_some(source, _shape_in)


def _shape_in(source: Source, scene: Scene) -> Written | None:
    item = _alone(source, scene, lambda item: item.color)
    if item is None:
        return None
    thing = Thing(color=item.color)
    # "What shape is the red shape" would be no question.
    words = f"{item.color} {pick(source.rng, ('object', 'object', 'thing', 'figure'))}"
    return scene, pick(source.rng, SHAPE).format(words), item.shape, (thing,)


def _about_some(source: Source, about: About, least: int = 1) -> Written:
    """A question about the first scene of a number of objects that it can be asked about."""
    count = source.count(least)
    while True:
        written = about(source, source.mixed(count))
        if written is not None:
            return written


def _alone(source: Source, scene: Scene, attribute: Callable[[Object], str]) -> Object | None:
    """One of the objects that are alone in having their attribute."""
    values = [attribute(item) for item in scene]
    alone = [item for item in source.subjects(scene) if values.count(attribute(item)) == 1]
    return pick(source.rng, alone) if alone else None


def _exists(source: Source) -> Written:
    yes, named, count = chance(source.rng, 0.5), source.rng.random(), source.count()
    while True:
        written = _exists_in(source, source.mixed(count), yes, named)
        if written is not None:
            return written


def _exists_in(source: Source, scene: Scene, yes: bool, named: float) -> Written | None:
    """`named`, up to 1: what the question names, both attributes below a half, else one of them."""
    rng = source.rng
    if yes:
        color, shape = pick(rng, source.subjects(scene)).kind
    else:
        # Half of what is absent has a color and a shape that are there, on two objects.
        color, shape = any_kind(rng)
        if chance(rng, 0.5):
            color, shape = pick(rng, scene).color, pick(rng, scene).shape
    thing = Thing(shape if named < 0.75 else None, color if named < 0.5 or named >= 0.75 else None)
    if any(thing.fits(item) for item in scene) != yes or (not yes and thing.kind in HELD_OUT_KINDS):
        return None
    words, plural = _words(rng, thing), _words(rng, thing, plural=True)
    question = pick(rng, EXISTS).format(a=with_article(words), plural=plural)
    return scene, question, "yes" if yes else "no", (thing,)


def _exists_further(source: Source, scene: Scene) -> Written | None:
    """Tried several times, as what is to be absent is often there: yes and no come about alike."""
    yes, named = chance(source.rng, 0.5), source.rng.random()
    tries = (_exists_in(source, scene, yes, named) for _ in range(8))
    return next((written for written in tries if written is not None), None)


def _where(source: Source) -> Written:
    return _about_some(source, _where_in, least=2)


def _where_in(source: Source, scene: Scene) -> Written | None:
    rng = source.rng
    first, second = pick(rng, source.subjects(scene)), pick(rng, scene)
    answer = relation(first, second, STATED_RATIO)
    names = [_references(scene, item) for item in (first, second)]
    if answer is None or not all(names):
        return None
    about = pick(rng, names[0]), pick(rng, names[1])
    words = [_words(rng, thing) for thing in about]
    return scene, pick(rng, WHERE).format(a=words[0], b=words[1]), answer, about


def _place(source: Source) -> Written:
    return _about_some(source, _place_in)


def _place_in(source: Source, scene: Scene) -> Written | None:
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


def _extreme(source: Source) -> Written:
    return _about_some(source, _extreme_in, least=2)


def _extreme_in(source: Source, scene: Scene) -> Written | None:
    """From the place to the thing, as "place" is the other way round, with more words to learn from."""
    if len(scene) == 1:
        return None
    side = pick(source.rng, RELATIONS)

    def behind(item: Object) -> float:
        along = item.x if side in ("left", "right") else item.y
        return along if side in ("left", "above") else -along

    item, second = sorted(scene, key=behind)[:2]
    if behind(second) - behind(item) < CLEARLY or item not in source.subjects(scene):
        return None
    question = pick(source.rng, EXTREME).format(most=pick(source.rng, FARTHEST[side]))
    answer = with_article(f"{item.color} {plain_name(item.shape)}")
    return scene, question, answer, (Thing(item.shape, item.color),)


def _references(scene: Scene, item: Object) -> list[Thing]:
    """The ways of naming an object that fit no other."""
    ways = [Thing(item.shape), Thing(color=item.color), Thing(item.shape, item.color)]
    return [thing for thing in ways if sum(thing.fits(other) for other in scene) == 1]


def _describe(source: Source) -> Written:
    return _describe_in(source, source.mixed(source.count()))


def _describe_in(source: Source, scene: Scene) -> Written:
    return scene, pick(source.rng, DESCRIBE), describe_scene(scene), ()


def _words(rng: Generator, thing: Thing, *, plural: bool = False) -> str:
    noun = name_noun(rng, Thing(thing.shape, count=2 if plural else 1))
    return f"{thing.color} {noun}" if thing.color else noun


WRITERS: dict[str, Callable[[Source], Written]] = {
    "count_all": _count_all,
    "count_shape": _count_shape,
    "count_kind": _count_kind,
    "color": _color,
    "shape": _shape,
    "exists": _exists,
    "where": _where,
    "describe": _describe,
    "place": _place,
    "extreme": _extreme,
}
# The same questions about a scene that is there already; None where they cannot be asked about it.
FURTHER: dict[str, About] = {
    "count_all": _count_all_in,
    "count_shape": _count_shape_in,
    "count_kind": _count_kind_in,
    "color": _color_in,
    "shape": _shape_in,
    "exists": _exists_further,
    "where": _where_in,
    "describe": _describe_in,
    "place": _place_in,
    "extreme": _extreme_in,
}
