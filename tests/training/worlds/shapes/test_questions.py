"""Questions: their answers against the scene, and which answers in free words are right."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from janus.training.worlds import shapes
from janus.training.worlds.shapes.question_texts import FARTHEST
from janus.training.worlds.shapes.question_writers import CLEARLY
from janus.training.worlds.shapes.questions import TAUGHT_CATEGORIES, Asked, ask, ask_further
from janus.training.worlds.shapes.scene import LATTICE, STATED_RATIO, Object, Scene, Thing
from janus.training.worlds.shapes.words import NUMBERS

SEEDS = st.integers(0, 2**32 - 1)
CATEGORIES = st.sampled_from(shapes.QUESTION_CATEGORIES)
TAUGHT = st.sampled_from(TAUGHT_CATEGORIES)


def only(scene: Scene, thing: Thing) -> Object:
    (item,) = [item for item in scene if thing.fits(item)]
    return item


def answer_from_scene(asked: Asked) -> str:
    """The answer from what is asked about; fails where more than one object could be meant."""
    scene, about = asked.scene, asked.about
    if asked.category == "count_all":
        return NUMBERS[len(scene)]
    if asked.category.startswith("count"):
        return NUMBERS[sum(about[0].fits(item) for item in scene)]
    if asked.category == "exists":
        return "yes" if any(about[0].fits(item) for item in scene) else "no"
    if asked.category in ("where", "place"):
        middle = Object("circle", "red", "small", LATTICE / 2, LATTICE / 2)
        seen_from = only(scene, about[1]) if asked.category == "where" else middle
        answer = shapes.relation(only(scene, about[0]), seen_from, STATED_RATIO)
        assert answer is not None
        return answer
    if asked.category == "describe":
        return shapes.describe_scene(scene)
    if asked.category == "extreme":
        return farthest(asked)
    item = only(scene, about[0])
    return item.color if asked.category == "color" else item.shape


def farthest(asked: Asked) -> str:
    """The name of what is clearly ahead of all others towards the side that the question names."""
    (side,) = [
        side
        for side, phrases in FARTHEST.items()
        if any(phrase in asked.question.lower() for phrase in phrases)
    ]
    towards = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[side]
    ahead = {item: item.x * towards[0] + item.y * towards[1] for item in asked.scene}
    item = max(ahead, key=lambda item: ahead[item])
    assert all(ahead[item] - ahead[other] >= CLEARLY for other in asked.scene if other != item)
    assert asked.about == (Thing(item.shape, item.color),)
    return shapes.describe_scene((item,))


@given(SEEDS, TAUGHT, st.sampled_from([False, True]))
def test_the_answer_is_the_scenes(seed: int, category: str, held_out: bool) -> None:
    asked = ask(default_rng(seed), category, held_out=held_out)
    assert asked.answer == answer_from_scene(asked)


@given(SEEDS, TAUGHT)
def test_the_answer_is_the_scenes_of_nameless_things(seed: int, category: str) -> None:
    first = ask(default_rng(seed), category, nameless=True)
    for asked in [first, *ask_further(default_rng(seed), first, 8)]:
        assert asked.answer == answer_from_scene(asked)
        assert asked.held_out is None


def test_nameless_things_are_asked_about_by_their_words() -> None:
    rng = default_rng(0)
    answers = {
        ask(rng, category, nameless=True).answer for category in ("color", "shape") for _ in range(200)
    }
    assert answers == {*shapes.COLORS, *shapes.SHAPES, "blob", "strange"}


@pytest.mark.parametrize(
    ("category", "answer"),
    [("shape", "blob"), ("color", "strange"), ("describe", "a red blob"), ("describe", "a strange circle")],
)
def test_words_for_the_nameless_are_no_right_answers(category: str, answer: str) -> None:
    """In the lists of evaluation there is nothing that they could mean."""
    asked = shapes.question(default_rng(0), category=category)
    assert not shapes.correct(asked, answer)


@given(SEEDS, CATEGORIES, st.sampled_from([False, "kind", "pair"]))
def test_further_questions_are_about_the_same_scene(seed: int, category: str, held_out: bool) -> None:
    first = ask(default_rng(seed), category, held_out=held_out)
    further = ask_further(default_rng(seed), first, 8)
    assert {"count_all", "count_shape", "describe"} - {category} <= {asked.category for asked in further}
    assert len({asked.category for asked in further}) == len(further)
    for asked in further:
        assert asked.scene is first.scene
        assert asked.held_out == first.held_out
        assert asked.answer == answer_from_scene(asked)
        if not held_out:
            assert not {thing.kind for thing in asked.about} & set(shapes.HELD_OUT_KINDS)
    assert ask_further(default_rng(seed), first, 0) == []


@given(SEEDS, st.lists(TAUGHT, min_size=1, unique=True), st.integers(0, 12))
def test_further_questions_of_some_categories_are_each_about_something_else(
    seed: int, categories: list[str], count: int
) -> None:
    first = ask(default_rng(seed), "count_all")
    further = ask_further(default_rng(seed), first, count, categories)
    assert len(further) <= count
    assert {asked.category for asked in further} <= set(categories)
    assert len({(asked.category, asked.about) for asked in [first, *further]}) == len(further) + 1
    assert all(asked.answer == answer_from_scene(asked) for asked in further)


def test_further_questions_are_not_the_same_the_other_way_round() -> None:
    """Of two things there is one direction: told once, the other can be answered without a look."""
    for seed in range(300):
        first = ask(default_rng(seed), "where")
        asked = [first, *ask_further(default_rng(seed), first, 20, ["where"])]
        pairs = [frozenset(only(each.scene, thing) for thing in each.about) for each in asked]
        assert len(set(pairs)) == len(pairs)


def test_further_questions_say_yes_and_no_alike() -> None:
    """A "no" that the scene does not allow is asked anew, not left out: else most answers were yes."""
    answers: Counter[str] = Counter()
    for seed in range(2000):
        first = ask(default_rng(seed), "count_all")
        answers.update(asked.answer for asked in ask_further(default_rng(seed), first, 1, ["exists"]))
    assert answers.total() > 1950  # a few scenes allow none in all tries
    assert abs(answers["yes"] - answers["no"]) < 224  # five standard deviations of 2,000 throws of a coin


def test_further_questions_of_an_unknown_category_are_refused() -> None:
    first = ask(default_rng(0), "count_all")
    with pytest.raises(ValueError, match="category 'cats' is unknown"):
        ask_further(default_rng(0), first, 0, ["cats"])


@settings(max_examples=60)
@given(SEEDS, CATEGORIES, st.sampled_from([False, True]))
def test_the_worlds_answer_is_right_and_others_are_wrong(seed: int, category: str, held_out: bool) -> None:
    question = shapes.question(default_rng(seed), category=category, held_out=held_out)
    assert question.category == category
    assert shapes.correct(question, question.answer)
    assert shapes.correct(question, f" {question.answer.upper()}. ")
    others = {
        "color": shapes.COLORS,
        "shape": shapes.SHAPES,
        "exists": ("yes", "no"),
        "where": ("left", "right", "above", "below"),
        "describe": ("a red circle", "four blue squares", "two objects", "nothing"),
    }.get(category, NUMBERS[:6])
    right = [other for other in others if shapes.correct(question, other)]
    assert right == [other for other in others if other == question.answer]
    assert not shapes.correct(question, "")
    assert not shapes.correct(question, " or ".join(others))


@pytest.mark.parametrize("category", ["count_all", "count_shape", "count_kind", "exists", "where", "place"])
def test_no_answer_is_much_likelier_than_another(category: str) -> None:
    rng = default_rng(1)
    answers = Counter(ask(rng, category).answer for _ in range(600))
    share = {answer: count / 600 for answer, count in answers.items()}
    expected = {
        "exists": {"yes": 1 / 2, "no": 1 / 2},
        "where": dict.fromkeys(("left", "right", "above", "below"), 1 / 4),
        "place": dict.fromkeys(("left", "right", "above", "below"), 1 / 4),
        "count_all": dict.fromkeys(NUMBERS[1:5], 1 / 4),
    }.get(category, {"zero": 0.12, **dict.fromkeys(NUMBERS[1:5], 0.22)})
    # Four standard deviations of a share of a half among 600.
    assert share == pytest.approx(expected, abs=0.082)


@pytest.mark.parametrize("category", shapes.QUESTION_CATEGORIES)
def test_questions_vary(category: str) -> None:
    rng = default_rng(2)
    asked = Counter(ask(rng, category).question.lower() for _ in range(120))
    assert len(asked) >= (8 if category == "describe" else 15)


def test_half_of_what_is_not_there_has_its_parts_there() -> None:
    rng = default_rng(3)
    absent = [asked for asked in (ask(rng, "exists") for _ in range(800)) if asked.answer == "no"]
    kinds = [asked for asked in absent if asked.about[0].kind]
    hard = sum(
        asked.about[0].color in {item.color for item in asked.scene}
        and asked.about[0].shape in {item.shape for item in asked.scene}
        for asked in kinds
    )
    assert hard > len(kinds) / 5


def test_a_new_color_is_asked_about() -> None:
    rng = default_rng(4)
    for category in shapes.QUESTION_CATEGORIES:
        for _ in range(20):
            assert "orange" in [item.color for item in ask(rng, category, color="orange").scene]


def asked_about(category: str, answer: str, *about: Thing) -> shapes.Question:
    """Of a picture with a red circle left of a blue square, and a blue star below both."""
    scene = (
        Object("circle", "red", "small", 3, 4),
        Object("square", "blue", "large", 12, 4),
        Object("star", "blue", "small", 8, 13),
    )
    return shapes.Question(shapes.render(scene), "", answer, category, about, None)


FREE: list[tuple[shapes.Question, list[str], list[str]]] = [
    (
        asked_about("count_all", "three"),
        ["3", "Three.", "there are three objects", "I see 3!", "exactly three"],
        ["33", "two or three", "there is a circle", "not", "no, three", "thirty"],
    ),
    (
        asked_about("count_kind", "zero", Thing("star", "red")),
        ["0", "none", "no red stars", "there are none", "there aren't any", "nothing", "not one", "zero"],
        [
            "one",
            "a",
            "yes",
            "none or one",
            "I cannot say.",
            "I don't know",
            "It isn't clear",
            "I can't count them",
        ],
    ),
    (
        asked_about("color", "red", Thing("circle")),
        ["Red", "it is red.", "the circle is red"],
        ["blue", "red or blue", "not red", "reddish", "it is a circle"],
    ),
    (
        asked_about("shape", "square", Thing(color="blue")),
        ["a square", "it's a box", "The blue object is a square."],
        ["circle", "a square or a circle", "no square", "squarish", "an object"],
    ),
    (
        asked_about("exists", "yes", Thing("star")),
        [
            "Yes.",
            "yes, there is",
            "Yeah",
            "there is one",
            "I see a star",
            "I see a red star",
            "Yes, for sure.",
        ],
        [
            *(
                "no",
                "yes and no",
                "there is no star",
                "perhaps",
                "a star",
                "There are zero stars.",
                "I see nothing.",
            ),
            *("There is neither", "I see a blue square", "There is a green triangle", "There are 0 stars"),
        ],
    ),
    (
        asked_about("exists", "no", Thing("cross")),
        [
            *("No", "no, there isn't", "there is no cross", "there are none", "I don't see one", "zero", "0"),
            *(
                "There are zero crosses.",
                "There is nothing like that",
                "No, for sure.",
                "none that I know of",
            ),
        ],
        [
            *("yes", "yes, no", "there is", "cross", "I can't tell.", "not sure", "I do not know", "no idea"),
            *("It isn't clear", "I can't read it"),
        ],
    ),
    (
        asked_about("where", "left", Thing("circle"), Thing("square")),
        [
            "left",
            "To the left.",
            "on the left of the square",
            "it is left of the blue square",
            "the circle is to the left of the square",
            "the red object is on the left side",
            "the square is to the right of the circle",
            "the square is right of the red disc",
            "The square has the circle to its left",
            "to the right of the circle is the square",
        ],
        [
            "right",
            "left or right",
            "not left",
            "left of the circle",
            "the square is to the left",
            "the square is to the left of the circle",
            "the circle is to the right of the square",
            "the star is left of the square",
            "to the left of the star",
            "above",
            "the circle",
            *("top left", "upper left", "lower left", "up and left", "at the bottom left"),
            "the square has the circle to its right",
        ],
    ),
    (
        asked_about("describe", "a red circle, a blue star and a blue square"),
        [
            "a blue square, a blue star and a red circle",
            "There is one red disc, one small blue star and a big blue box.",
        ],
        [
            "a circle, a star and a square",
            "a red circle and a blue square",
            "a red circle, two blue stars and a blue square",
            "a large red circle, a blue star and a blue square",
            "three objects",
            "I do not know",
        ],
    ),
]


@pytest.mark.parametrize(("question", "right", "wrong"), FREE, ids=lambda case: getattr(case, "category", ""))
def test_answers_in_free_words(question: shapes.Question, right: list[str], wrong: list[str]) -> None:
    assert [answer for answer in right if not shapes.correct(question, answer)] == []
    assert [answer for answer in wrong if shapes.correct(question, answer)] == []


VALUES = {
    "count_all": ("one", "two", "seven"),
    "count_shape": ("one", "two", "seven"),
    "count_kind": ("one", "two", "seven"),
    "color": ("red", "blue"),
    "shape": ("star", "square"),
    "where": ("left", "above"),
}


@settings(max_examples=60)
@given(st.sampled_from(sorted(VALUES)), SEEDS, st.text("?!.,;: \n", max_size=5))
def test_another_answer_beside_the_right_one_or_a_not_before_it_is_wrong(
    category: str, seed: int, marks: str
) -> None:
    question = shapes.question(default_rng(seed), category=category)
    right = question.answer
    assert shapes.correct(question, marks + right.upper() + marks), "case and marks count for nothing"
    for other in set(VALUES[category]) - {right}:
        said = (marks, other, f"{right} or {other}", f"{other}, {right}", f"not {right}")
        assert not [answer for answer in said if shapes.correct(question, answer)]


@settings(max_examples=60)
@given(CATEGORIES, SEEDS, st.text(max_size=40))
def test_any_answer_is_judged(category: str, seed: int, answer: str) -> None:
    """Without an error, and as right only where it has a word of the answer's."""
    question = shapes.question(default_rng(seed), category=category)
    if shapes.correct(question, answer):
        assert any(character.isalnum() for character in answer)


def test_what_is_held_out_has_a_name() -> None:
    with pytest.raises(ValueError, match="nameless and held_out 'kind' exclude each other: leave one out"):
        ask(default_rng(0), "color", held_out="kind", nameless=True)


def test_unknown_categories_are_named() -> None:
    with pytest.raises(ValueError, match="category 'colour' is unknown: use one of count_all, "):
        ask(default_rng(0), "colour")
    with pytest.raises(ValueError, match="category 'colour' is unknown: use one of count_all, "):
        shapes.correct(asked_about("colour", "red"), "red")
