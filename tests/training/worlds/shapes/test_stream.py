"""The streams and the lists: functions of their generator or seed alone, and of no other list's."""

from collections import Counter
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from janus.training.worlds import shapes
from janus.training.worlds.shapes import stream
from janus.training.worlds.shapes.sampling import CATEGORIES, NAMING
from janus.training.worlds.shapes.scene import RELATIONS
from janus.training.worlds.shapes.stream import MOST_TURNS

SEEDS = st.integers(0, 2**32 - 1)


def same(one: Any, other: Any) -> bool:
    """Whether two drawings or questions agree in every field."""
    return all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())


@settings(max_examples=50)
@given(SEEDS, st.sampled_from([64, 96]))
def test_items_are_functions_of_the_generator(seed: int, side: int) -> None:
    for make in (shapes.drawing, shapes.question):
        item = make(default_rng(seed), side=side)
        assert same(item, make(default_rng(seed), side=side))
        assert item.picture.shape == (side, side, 3)
    assert shapes.text(default_rng(seed)) == shapes.text(default_rng(seed))


def test_a_stream_goes_on() -> None:
    rng = default_rng(0)
    drawings = [shapes.drawing(rng) for _ in range(300)]
    # There are some ten thousand pictures of one object: a few of a hundred may coincide.
    assert len({drawing.picture.tobytes() for drawing in drawings}) >= 295
    assert {drawing.category for drawing in drawings} == set(CATEGORIES)
    asked = [shapes.question(rng) for _ in range(300)]
    assert {question.category for question in asked} == set(shapes.QUESTION_CATEGORIES)


@settings(max_examples=50)
@given(SEEDS)
def test_a_caption_says_what_is_in_its_picture(seed: int) -> None:
    drawing = shapes.drawing(default_rng(seed), held_out=bool(seed % 2))
    assert shapes.parse(drawing.caption).canonical() == drawing.spec.canonical()
    assert shapes.verify(drawing.picture, drawing.caption)


LISTS: dict[str, Any] = {
    "seen": shapes.seen_prompts,
    "held out": shapes.held_out_prompts,
    "questions": partial(shapes.questions, held_out=False),
    "held-out questions": partial(shapes.questions, held_out=True),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_shorter_list_begins_a_longer_one(name: str) -> None:
    long, short = LISTS[name](40, 3), LISTS[name](16, 3, split="test")
    assert len(long) == 40
    assert all(same(one, other) for one, other in zip(short, long[:16], strict=True))


@pytest.mark.parametrize("name", LISTS)
def test_splits_and_seeds_differ(name: str) -> None:
    lists = [LISTS[name](24, 0, split="validation"), LISTS[name](24, 0, split="test"), LISTS[name](24, 1)]
    pictures = [{item.picture.tobytes() for item in items} for items in lists]
    # A scene of one object can coincide by chance; two lists of one seed would in all 24.
    assert all(
        len(one & other) <= 1 for one, other in zip(pictures, pictures[1:] + pictures[:1], strict=True)
    )


def test_no_two_lists_are_drawn_by_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []
    monkeypatch.setattr(stream, "default_rng", lambda seed: drawn.append(tuple(seed)) or default_rng(seed))
    for make in LISTS.values():
        for split in stream.SPLITS:
            for seed in range(2):
                make(3, seed, split=split)
                if make is not shapes.held_out_prompts and make is not LISTS["held-out questions"]:
                    make(3, seed, split=split, color="orange")
    assert len(set(drawn)) == len(drawn) == 3 * 2 * 2 * (len(LISTS) + 2)


def test_seen_prompts_take_the_categories_in_turn() -> None:
    prompts = shapes.seen_prompts(70, 0, split="validation")
    assert [prompt.category for prompt in prompts] == [*CATEGORIES] * 10
    assert all(prompt.held_out is None for prompt in prompts)


def test_held_out_prompts_name_what_is_held_out() -> None:
    prompts = shapes.held_out_prompts(48, 0)
    assert Counter(prompt.held_out for prompt in prompts) == {"kind": 24, "pair": 24}
    for reason, categories in NAMING.items():
        mine = Counter(prompt.category for prompt in prompts if prompt.held_out == reason)
        assert mine == dict.fromkeys(categories, 24 // len(categories))
    for prompt in prompts:
        assert shapes.held_out_reason(shapes.parse(prompt.caption).kinds) == prompt.held_out
        assert shapes.verify(prompt.picture, prompt.caption)


@pytest.mark.parametrize("held_out", [False, True])
def test_questions_take_the_categories_in_turn(held_out: bool) -> None:
    asked = shapes.questions(16, 0, held_out=held_out, side=96)
    assert [question.category for question in asked] == [*shapes.QUESTION_CATEGORIES] * 2
    assert all((question.held_out is not None) == held_out for question in asked)
    assert all(question.picture.shape == (96, 96, 3) for question in asked)


def test_vocabulary_texts_hold_every_word_and_nothing_new() -> None:
    texts = list(shapes.vocabulary_texts(3000, 0))
    assert texts[:50] == list(shapes.vocabulary_texts(50, 0))
    assert texts[:50] != list(shapes.vocabulary_texts(50, 1))
    words = set(" ".join(texts).lower().replace("?", " ").replace(".", " ").replace(",", " ").split())
    assert {*shapes.COLORS, *shapes.SHAPES, "rhombuses", "underneath", "opposite", "four", "3"} <= words
    assert not words & set(shapes.NEW_COLORS)
    assert len(words) < 250


def test_vocabulary_texts_come_one_by_one() -> None:
    assert len(list(islice(shapes.vocabulary_texts(10**12, 0), 5))) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shapes.seen_prompts(4, 0, split="train"), "split 'train' is unknown: use"),
        (lambda: shapes.held_out_prompts(-1, 0), "count must be a whole number of at least 0, not -1"),
        (lambda: shapes.questions(2, -3, held_out=False), "seed must be a whole number of at least 0"),
        (lambda: list(shapes.vocabulary_texts(1, 0.5)), "seed must be a whole number"),
        (lambda: shapes.drawing(default_rng(0), category="cats"), "category 'cats' is unknown"),
        (lambda: shapes.question(default_rng(0), category="cats"), "category 'cats' is unknown"),
        (lambda: shapes.drawing(default_rng(0), side=8), "side must be a whole number of at least 64"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_description_of_a_conversation_ends_it() -> None:
    """Whoever has read it can answer the rest without the picture."""
    shared = 0
    for seed in range(200):
        answers = [answer for _, answer in shapes.conversation(default_rng(seed)).turns]
        told = [number for number, answer in enumerate(answers) if " " in answer]  # all others are one word
        assert told in ([], [len(answers) - 1])
        shared += len(answers) > 1 and bool(told)
    assert shared > 20
    for seed in range(20):
        (turn,) = shapes.conversation(default_rng(seed), categories=("describe",)).turns
        assert " " in turn[1]


def test_a_conversation_of_some_categories_keeps_to_them() -> None:
    conversations = [
        shapes.conversation(default_rng(seed), categories=("exists", "where")).turns for seed in range(100)
    ]
    answers = {answer for turns in conversations for _, answer in turns}
    assert answers == {"yes", "no", *RELATIONS}
    assert all(1 <= len(turns) <= MOST_TURNS for turns in conversations)
    assert sum(map(len, conversations)) > 400  # with all categories, 3.6 turns a picture
    with pytest.raises(ValueError, match="category 'cats' is unknown"):
        shapes.conversation(default_rng(0), categories=("cats",))
