"""Endless scenes by category, with and without what is held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.random import Generator

from janus.training.worlds.shapes.draws import chance, pick, whole
from janus.training.worlds.shapes.held_out import Reason, held_out_reason
from janus.training.worlds.shapes.scene import (
    COLORS,
    LATTICE,
    LOOKS,
    NAMELESS_COLOR,
    NAMELESS_SHAPE,
    NEW_COLORS,
    SHAPES,
    SIZES,
    STATED_RATIO,
    Kind,
    Object,
    Scene,
    Spec,
    Thing,
    relation,
)

# GenEval's six (Ghosh et al., 2023, arXiv:2310.11513), and both colors with a relation.
CATEGORIES = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attribution",
    "full",
)
# For training alone: one thing or two, each with the ninth of the picture that it is in.
DRAWN_CATEGORIES = (*CATEGORIES, "region")
SINGLE = ("single_object", "colors")
RELATED = ("position", "full")
COLORED = ("colors", "color_attribution", "full")
# The categories whose text names colors, and so can name what is held out, by why it is.
NAMING: dict[Reason, tuple[str, ...]] = {
    "kind": ("colors", "counting", "color_attribution", "full"),
    "pair": ("counting", "color_attribution", "full"),
}
MOST = 4  # objects in a picture
NAME_SIZE = 0.15
# Lattice steps to a side of the squares that cells are made of.
SQUARES = {"grid": 2, "lattice": 1, "anywhere": 0.25}

HeldOut = bool | Reason
Places = Literal["grid", "lattice", "anywhere"]


@dataclass(frozen=True)
class Sample:
    """A scene, what its caption is to say, and why it is not for training (None: it is)."""

    scene: Scene
    spec: Spec
    category: str
    held_out: Reason | None


def sample(
    rng: Generator,
    category: str,
    *,
    held_out: HeldOut = False,
    color: str | None = None,
    places: Places = "grid",
    nameless: bool = False,
) -> Sample:
    """A scene of a category. With `color` at least one object has it: the way to colors that are new.

    Of `places` see `place`, of `nameless` see `any_kind`.

    Not held out: no kind in the scene, and no two of its kinds together, are held out; nor can its text be,
    which names kinds of the scene only. Held out: by a kind or by a pair as named, or with True by either
    alike (a single object: by its kind). The text then names the combination too, except in the categories
    that name no color: single_object, two_object, position. ValueError for an unknown category, reason or
    color, for a pair held out among single objects, and for a color or what is nameless asked of what is
    held out.
    """
    require_category(category, DRAWN_CATEGORIES)
    if held_out and category not in CATEGORIES:
        raise ValueError(f"category {category!r} is for training alone: leave held_out {held_out!r} out")
    if color is not None:
        require_color(color)
        if held_out:
            raise ValueError(f"color {color!r} and held_out {held_out!r} exclude each other: leave one out")
    wanted = choose_reason(rng, held_out, single=category in SINGLE, nameless=nameless)
    alike = category == "counting" and (wanted is not None or chance(rng, 0.5))
    kinds = draw_kinds(lambda: _propose(rng, category, alike, color, nameless), wanted)
    scene = place(rng, kinds, related=category in RELATED, places=places)
    return Sample(scene, _specify(rng, scene, category, alike), category, wanted)


def require_category(category: str, categories: Sequence[str]) -> None:
    if category not in categories:
        raise ValueError(f"category {category!r} is unknown: use one of {', '.join(categories)}")


def require_color(color: str) -> None:
    if color not in COLORS + NEW_COLORS:
        raise ValueError(f"color {color!r} is unknown: use one of {', '.join(COLORS + NEW_COLORS)}")


def choose_reason(
    rng: Generator, held_out: HeldOut, *, single: bool = False, nameless: bool = False
) -> Reason | None:
    """What `held_out` asks for, with True settled.

    ValueError for what is no reason, is not of one object, or is asked for beside what is nameless.
    """
    if nameless and held_out:
        raise ValueError(f"nameless and held_out {held_out!r} exclude each other: leave one out")
    if held_out is True:
        return "kind" if single or chance(rng, 0.5) else "pair"
    if held_out is False:
        return None
    if held_out not in ("kind", "pair"):
        raise ValueError(f"held_out is {held_out!r}: use False, True, 'kind' or 'pair'")
    if single and held_out == "pair":
        raise ValueError("held_out is 'pair' for a single object: use 'kind'")
    return held_out


def draw_kinds(propose: Callable[[], list[Kind]], wanted: Reason | None) -> list[Kind]:
    """The first proposal that is held out for the wanted reason, or not at all."""
    while True:
        kinds = propose()
        if held_out_reason(kinds) == wanted:
            return kinds


def any_kind(rng: Generator, color: str | None = None, nameless: bool = False) -> Kind:
    """A kind of the training colors, or of the one given.

    `nameless`: two of three have a shape or, unless one is given, a color, not both, that has no word of its
    own. Then there is purple of all outlines but one, and that one in all colors but purple, which leaves
    both to be put together.
    """
    if nameless:
        part = rng.random()
        if part < 1 / 3:
            return color or pick(rng, COLORS), NAMELESS_SHAPE
        if part < 2 / 3 and not color:
            return NAMELESS_COLOR, pick(rng, SHAPES)
    return color or pick(rng, COLORS), pick(rng, SHAPES)


def place(rng: Generator, kinds: Sequence[Kind], *, related: bool = False, places: Places = "grid") -> Scene:
    """Objects of these kinds and of either size, their cells apart; `related`: clearly so, along one axis.

    On the "grid" their cells are made of squares of 8 x 8: where a model has a code for each square, a code
    shows one of few things. On the "lattice", of 16 x 16, most places are between: a tokenizer that learns
    there cannot know objects by heart, and puts together those that it has not seen. "anywhere", of 64 x 64,
    does that to whoever looks at pictures patch by patch.
    """
    square = SQUARES[places]
    while True:
        sizes = [pick(rng, tuple(SIZES)) for _ in kinds]
        scene: list[Object] = []
        for (color, shape), size in zip(kinds, sizes, strict=True):
            room = SIZES[size]
            for _ in range(20):
                x, y = (room + square * whole(rng, 0, int((LATTICE - 2 * room) / square)) for _ in range(2))
                if all(max(abs(x - o.x), abs(y - o.y)) >= room + SIZES[o.size] for o in scene):
                    various = shape == NAMELESS_SHAPE or color == NAMELESS_COLOR
                    look = whole(rng, 0, LOOKS - 1) if various else 0
                    scene.append(Object(shape, color, size, x, y, look))
                    break
            else:
                break
        if len(scene) == len(kinds) and not (related and relation(scene[0], scene[1], STATED_RATIO) is None):
            return tuple(scene)


def _propose(rng: Generator, category: str, alike: bool, color: str | None, nameless: bool) -> list[Kind]:
    """Kinds such as a category asks for, the first of `color`; `alike`: those counted are of one color."""
    first = any_kind(rng, color, nameless)
    if category in SINGLE:
        return [first]
    if category == "counting":
        others = whole(rng, 1, MOST - 1)
        return [first] + [first if alike else (pick(rng, COLORS), first[1]) for _ in range(others)]
    if category == "region":
        return [first] if chance(rng, 0.5) else [first, any_kind(rng, nameless=nameless)]
    while True:
        second = any_kind(rng, nameless=nameless)
        if _told_apart(category, first, second):
            return [first, second] if chance(rng, 0.5) else [second, first]


def _told_apart(category: str, first: Kind, second: Kind) -> bool:
    """Whether the words of the category differ between two kinds."""
    if category == "full":
        return first != second
    part = 0 if category == "color_attribution" else 1
    return first[part] != second[part]


def _specify(rng: Generator, scene: Scene, category: str, alike: bool) -> Spec:
    if category == "counting":
        first = scene[0]
        return Spec((Thing(first.shape, first.color if alike else None, count=len(scene)),))
    if category == "region":
        return Spec(tuple(_placed(rng, item) for item in scene))
    named_color = category in COLORED
    named_size = category in SINGLE and chance(rng, NAME_SIZE)
    things = tuple(
        Thing(item.shape, item.color if named_color else None, item.size if named_size else None)
        for item in scene
    )
    return Spec(things, relation(scene[0], scene[1]) if category in RELATED else None)


def _placed(rng: Generator, item: Object) -> Thing:
    """An object by its region, and mostly by its shape, its color or both.

    By its region alone it differs from what stands elsewhere, whatever that is.
    """
    shaped, colored = pick(rng, ((False, False), (True, False), (False, True), (True, True)))
    return Thing(item.shape if shaped else None, item.color if colored else None, region=item.region)
