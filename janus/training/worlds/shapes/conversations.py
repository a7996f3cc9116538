"""Conversations in text alone: what words of place, number and color mean, without a picture."""

from collections.abc import Sequence

from numpy.random import Generator

from janus.training.worlds.shapes.captions import vary_case
from janus.training.worlds.shapes.draws import chance, pick, whole
from janus.training.worlds.shapes.held_out import held_out_reason
from janus.training.worlds.shapes.sampling import any_kind
from janus.training.worlds.shapes.scene import INVERSE, RELATIONS, SHAPES, Kind
from janus.training.worlds.shapes.words import (
    NUMBERS,
    RELATION_PHRASES,
    join_list,
    plain_name,
    spell,
    with_article,
)


def text(rng: Generator) -> tuple[str, str]:
    """A question and its short answer. No kind and no two kinds that it names are held out."""
    question, answer = pick(rng, _WRITERS)(rng)
    return vary_case(rng, question), answer


def _names(rng: Generator, count: int) -> list[str]:
    """Different things, all with their colors or all without."""
    if chance(rng, 0.3):
        return [plain_name(SHAPES[number]) for number in rng.permutation(len(SHAPES))[:count]]
    return [f"{color} {plain_name(shape)}" for color, shape in _kinds(rng, count)]


def _kinds(rng: Generator, count: int) -> list[Kind]:
    """Kinds of which no two share a color or a shape."""
    while True:
        kinds = [any_kind(rng) for _ in range(count)]
        apart = all(len({kind[part] for kind in kinds}) == count for part in (0, 1))
        if apart and held_out_reason(kinds) is None:
            return kinds


def _phrase(rng: Generator, relation: str) -> str:
    return pick(rng, RELATION_PHRASES[relation])


def _inversion(rng: Generator) -> tuple[str, str]:
    relation, (first, second) = pick(rng, RELATIONS), _names(rng, 2)
    where = pick(
        rng,
        (
            f"where is the {second}?",
            f"where is the {second} relative to the {first}?",
            f"relative to the {first}, where is the {second}?",
        ),
    )
    stated = f"{with_article(first)} is {_phrase(rng, relation)} {with_article(second)}"
    question = pick(rng, (f"if {stated}, {where}", f"{stated}. {where}", f"suppose {stated}. {where}"))
    return question, INVERSE[relation]


def _chain(rng: Generator) -> tuple[str, str]:
    relation, (first, second, third) = pick(rng, RELATIONS), _names(rng, 3)
    stated = (
        f"the {first} is {_phrase(rng, relation)} the {second} and "
        f"the {second} is {_phrase(rng, relation)} the {third}"
    )
    if chance(rng, 0.5):
        first, third, relation = third, first, INVERSE[relation]
    where = f"where is the {first} relative to the {third}?"
    return pick(rng, (f"{stated}. {where}", f"if {stated}, {where}")), relation


def _opposite(rng: Generator) -> tuple[str, str]:
    relation = pick(rng, RELATIONS)
    return pick(rng, ("what is the opposite of {}?", "name the opposite of {}.")).format(relation), INVERSE[
        relation
    ]


def _sum(rng: Generator) -> tuple[str, str]:
    names, counts = _shape_names(rng, 2), [whole(rng, 1, 4), whole(rng, 1, 4)]
    listed = _count_list(rng, names, counts)
    be = "is" if counts[0] == 1 else "are"
    how_many = pick(
        rng, ("how many objects are there?", "how many objects is that?", "how many are there in all?")
    )
    return f"there {be} {listed}. {how_many}", spell(sum(counts))


def _counted(rng: Generator) -> tuple[str, str]:
    names, counts = _shape_names(rng, 2), [whole(rng, 1, 4), whole(rng, 1, 4)]
    be = "is" if counts[0] == 1 else "are"
    chosen = whole(rng, 0, 1)
    asked = pick(rng, ("how many {} are there?", "count the {}.")).format(names[chosen][1])
    return f"there {be} {_count_list(rng, names, counts)}. {asked}", spell(counts[chosen])


def _listed(rng: Generator) -> tuple[str, str]:
    words = [plain_name(pick(rng, SHAPES)) for _ in range(whole(rng, 2, 5))]
    if chance(rng, 0.5):
        return f"how many words are in this list: {', '.join(words)}?", spell(len(words))
    asked = pick(rng, words)
    return f"how often does this list say {asked}: {', '.join(words)}?", spell(words.count(asked))


def _compared(rng: Generator) -> tuple[str, str]:
    names = _shape_names(rng, 2)
    counts = [int(count) + 1 for count in rng.permutation(5)[:2]]
    fewer = chance(rng, 0.5)
    chosen = counts.index(min(counts) if fewer else max(counts))
    asked = f"are there {'fewer' if fewer else 'more'} {names[0][1]} or {names[1][1]}?"
    be = "is" if counts[0] == 1 else "are"
    return f"there {be} {_count_list(rng, names, counts)}. {asked}", names[chosen][1]


def _number(rng: Generator) -> tuple[str, str]:
    number = whole(rng, 1, len(NUMBERS) - 2)
    other = pick(rng, [other for other in range(1, len(NUMBERS)) if other != number])
    return pick(
        rng,
        (
            (f"what comes after {spell(number)}?", spell(number + 1)),
            (f"what comes before {spell(number)}?", spell(number - 1)),
            (f"which is more, {spell(number)} or {spell(other)}?", spell(max(number, other))),
            (f"is {spell(number)} more than {spell(other)}?", "yes" if number > other else "no"),
            (f"spell the number {number}.", spell(number)),
        ),
    )


def _attribute(rng: Generator) -> tuple[str, str]:
    kinds = _kinds(rng, whole(rng, 2, 3))
    listed = join_list([with_article(f"{color} {plain_name(shape)}") for color, shape in kinds])
    stated = pick(rng, ("there is {}.", "here is {}.", "a picture shows {}.")).format(listed)
    color, shape = pick(rng, kinds)
    asked, answer = pick(
        rng,
        (
            (f"what color is the {plain_name(shape)}?", color),
            (f"what colour is the {plain_name(shape)}?", color),
            (f"what shape is the {color} object?", shape),
            (f"which object is {color}?", shape),
        ),
    )
    return f"{stated} {asked}", answer


def _shape_names(rng: Generator, count: int) -> list[tuple[str, str]]:
    """Singular and plural of different shapes."""
    chosen = [SHAPES[number] for number in rng.permutation(len(SHAPES))[:count]]
    return [(plain_name(shape), plain_name(shape, plural=True)) for shape in chosen]


def _count_list(rng: Generator, names: Sequence[tuple[str, str]], counts: Sequence[int]) -> str:
    style = str if chance(rng, 0.2) else spell
    return join_list([f"{style(count)} {name[count > 1]}" for name, count in zip(names, counts, strict=True)])


_WRITERS = (
    _inversion,
    _inversion,
    _chain,
    _opposite,
    _sum,
    _counted,
    _listed,
    _compared,
    _number,
    _attribute,
    _attribute,
)
