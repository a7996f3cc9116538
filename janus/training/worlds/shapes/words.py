"""The English of the world, for those who write it and those who read it. Colors are their own words."""

# Singular and plural, the plain name first.
NOUNS = {
    "circle": (("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses")),
    "star": (("star", "stars"),),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
}
NAMELESS_NOUNS = (("blob", "blobs"),)
ANY_NOUNS = (("object", "objects"), ("shape", "shapes"), ("thing", "things"), ("figure", "figures"))
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
RELATION_PHRASES = {
    "left": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath", "underneath", "lower than"),
}
# How the second of two things lies to the first.
ITS_PHRASES = {
    "left": ("to its left", "on its left"),
    "right": ("to its right", "on its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it", "beneath it"),
}
REGION_PHRASES = {
    "top left": ("at the top left", "in the top left corner", "on the upper left"),
    "top": ("at the top", "at the upper edge"),
    "top right": ("at the top right", "in the top right corner", "on the upper right"),
    "left": ("on the left", "at the left edge"),
    "middle": ("in the middle", "in the center"),
    "right": ("on the right", "at the right edge"),
    "bottom left": ("at the bottom left", "in the bottom left corner", "on the lower left"),
    "bottom": ("at the bottom", "at the lower edge"),
    "bottom right": ("at the bottom right", "in the bottom right corner", "on the lower right"),
}
# The words of an answer to "where". As the world answers, it is the relation's name.
PLACE_WORDS = {
    "left": "left",
    "right": "right",
    "above": "above",
    "over": "above",
    "higher": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
    "underneath": "below",
    "lower": "below",
}


def spell(number: int) -> str:
    return NUMBERS[number]


def with_article(phrase: str) -> str:
    """A phrase after "a", or "an" before the sound of a vowel: all our words are spelled as they begin."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def join_list(phrases: list[str]) -> str:
    """The phrases as one: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]


def nouns_of(shape: str | None) -> tuple[tuple[str, str], ...]:
    """Singulars and plurals of a shape, the plain one first; of none, what may be any."""
    return NOUNS.get(shape, NAMELESS_NOUNS) if shape else ANY_NOUNS


def plain_name(shape: str, *, plural: bool = False) -> str:
    return nouns_of(shape)[0][plural]
