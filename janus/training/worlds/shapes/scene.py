"""Objects in a picture, what a caption specifies of them, and when that holds.

Lengths are in lattice steps, LATTICE to a side, x to the right and y downwards: a scene has no resolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")
NEW_COLORS = ("orange",)  # drawn and read like the others, sampled only when asked for by name
# One word each for all outlines and all colors that have none of their own, in training alone. What never
# comes in purple, or as a diamond, is then not only the one kind that is held out.
NAMELESS_SHAPE = "blob"
NAMELESS_COLOR = "strange"
LOOKS = 1024
LATTICE = 16
# Half the side of the cell that an object has to itself, in lattice steps.
SIZES = {"small": 2, "large": 3}
# The ninths of a picture, by row and column.
REGIONS = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
# A relation is stated only where it is clear, and recognised where it is the nearer of two.
STATED_RATIO = 1.3

Kind = tuple[str, str]  # a color and a shape


@dataclass(frozen=True, slots=True)
class Object:
    """An object and the center of its bounding box. ValueError for a name that the world does not have.

    `look`: which of the blobs it is, or which of the strange colors it has, if it is one or has one.
    """

    shape: str
    color: str
    size: str
    x: float
    y: float
    look: int = 0

    def __post_init__(self) -> None:
        _require_names(self.shape, self.color, self.size)

    @property
    def kind(self) -> Kind:
        return self.color, self.shape

    @property
    def region(self) -> str:
        """Where its middle is."""
        return REGIONS[int(3 * self.y / LATTICE)][int(3 * self.x / LATTICE)]


Scene = tuple[Object, ...]


@dataclass(frozen=True, slots=True)
class Thing:
    """`count` objects with the attributes that are given; those that are None may be anything.

    ValueError for a name that the world does not have and for a count below 1.
    """

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    count: int = 1
    region: str | None = None

    def __post_init__(self) -> None:
        _require_names(self.shape, self.color, self.size, self.region)
        if self.count < 1:
            raise ValueError(f"a thing's count must be at least 1, not {self.count}")

    @property
    def kind(self) -> Kind | None:
        """Its color and shape, if both are named."""
        return (self.color, self.shape) if self.color and self.shape else None

    def fits(self, item: Object) -> bool:
        return (
            self.shape in (None, item.shape)
            and self.color in (None, item.color)
            and self.size in (None, item.size)
            and self.region in (None, item.region)
        )


@dataclass(frozen=True, slots=True)
class Spec:
    """What a caption says: the things in the picture, and of exactly two how the first lies to the second.

    It holds for a picture that contains these objects and no others (`holds`). ValueError for a relation
    that does not exist, is not between two single things or stands beside regions, and where there is no
    thing at all.
    """

    things: tuple[Thing, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if not self.things:
            raise ValueError("a specification names nothing: give at least one thing")
        if self.relation is None:
            return
        if self.relation not in INVERSE:
            raise ValueError(f"the relation {self.relation!r} is unknown: use one of {', '.join(RELATIONS)}")
        if [thing.count for thing in self.things] != [1, 1]:
            raise ValueError(f"the relation {self.relation!r} needs exactly two single things")
        if any(thing.region for thing in self.things):
            raise ValueError(f"the relation {self.relation!r} says where things are: leave their regions out")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of each object whose color and shape are both named."""
        return tuple(thing.kind for thing in self.things if thing.kind for _ in range(thing.count))

    def canonical(self) -> Spec:
        """The one specification among those that say the same in another order or by the inverse relation."""
        if self.relation in ("right", "below"):
            return Spec(self.things[::-1], INVERSE[self.relation])
        if self.relation:
            return self
        counts: Counter[tuple[str | None, str | None, str | None, str | None]] = Counter()
        for thing in self.things:
            counts[thing.shape, thing.color, thing.size, thing.region] += thing.count
        ordered = sorted(counts, key=lambda names: [name or "" for name in names])
        return Spec(
            tuple(
                Thing(shape, color, size, counts[shape, color, size, region], region)
                for shape, color, size, region in ordered
            )
        )


def relation(first: Object, second: Object, ratio: float = 1.0) -> str | None:
    """How `first` lies to `second`: along the axis on which they are farther apart.

    None unless that distance is the greater, and at least `ratio` times the other.
    """
    dx, dy = second.x - first.x, second.y - first.y
    longer, shorter = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if longer == shorter or longer < ratio * shorter:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx > 0 else "right"
    return "above" if dy > 0 else "below"


def holds(spec: Spec, objects: Sequence[Object]) -> bool:
    """Whether the objects are exactly those specified, no more and no fewer, with attributes and relation.

    What is not named is free; the relation is that of `relation` at ratio 1.
    """
    wanted = [thing for thing in spec.things for _ in range(thing.count)]
    if len(wanted) != len(objects):
        return False
    if spec.relation is None:
        return _assignable(wanted, objects)
    return any(
        wanted[0].fits(first) and wanted[1].fits(second) and relation(first, second) == spec.relation
        for first, second in (objects, objects[::-1])
    )


@dataclass(frozen=True)
class Meaning:
    """What a caption says, and the scene that it was made for."""

    spec: Spec
    scene: Scene

    def is_also(self, other: Meaning) -> bool:
        """Whether this scene is as the other's caption says, too."""
        return holds(other.spec, self.scene)


def _assignable(wanted: Sequence[Thing], objects: Sequence[Object]) -> bool:
    """Whether each wanted thing can have a fitting object of its own (augmenting paths)."""
    owner: dict[int, int] = {}

    def assign(number: int, tried: set[int]) -> bool:
        for index, item in enumerate(objects):
            if index not in tried and wanted[number].fits(item):
                tried.add(index)
                if index not in owner or assign(owner[index], tried):
                    owner[index] = number
                    return True
        return False

    return all(assign(number, set()) for number in range(len(wanted)))


def _require_names(shape: str | None, color: str | None, size: str | None, region: str | None = None) -> None:
    for what, name, names in (
        ("shape", shape, (*SHAPES, NAMELESS_SHAPE)),
        ("color", color, (*COLORS, *NEW_COLORS, NAMELESS_COLOR)),
        ("size", size, tuple(SIZES)),
        ("region", region, tuple(name for row in REGIONS for name in row)),
    ):
        if name is not None and name not in names:
            raise ValueError(f"the {what} {name!r} is unknown: use one of {', '.join(names)}")
