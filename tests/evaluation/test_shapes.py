"""The evaluation on `shapes`: of a pipe whose mistakes are known, and of a model with random weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import janus
from janus.evaluation.intervals import Tally
from janus.evaluation.shapes import GROUP, MOST_ANSWER_TOKENS, evaluate, held_out_sheet
from janus.training.worlds import shapes

SAMPLES, SEED = 72, 3  # more than GROUP, and no multiple of it nor of the number of categories in a list
MakePipe = Callable[..., Any]


def expected(items: Sequence[Any], fails: Callable[[int], bool], first: int) -> dict[str, Tally]:
    """By category: `items` are the tasks from number `first` on of a verb of the pipe."""
    tallies: dict[str, Tally] = {}
    for number, item in enumerate(items, start=first):
        right = int(not fails(number))
        tallies[item.category] = tallies.get(item.category, Tally()) + Tally(right, 1)
    return tallies


def test_all_right(make_pipe: MakePipe) -> None:
    written = evaluate(make_pipe(), samples=SAMPLES, seed=SEED).to_json()
    assert written["reconstruction"] == 1
    assert written["drawing"] == {
        "seen": 1,
        "heldout": 1,
        "by_category": dict.fromkeys(shapes.CATEGORIES, 1),
    }
    assert written["answers"] == {
        "seen": 1,
        "heldout": 1,
        "by_category": dict.fromkeys(shapes.QUESTION_CATEGORIES, 1),
    }


def test_all_wrong(make_pipe: MakePipe) -> None:
    scores = evaluate(make_pipe(lambda verb, number: True), samples=20, seed=SEED)
    assert [part.whole for part in scores.parts.values()] == [Tally(0, 40)] * 3


def test_each_mistake_counts_once_and_where_it_belongs(make_pipe: MakePipe) -> None:
    """Every verb fails at numbers of its own; the lists are judged in order, seen before held out."""
    every = {"reconstruct": 5, "draw": 3, "chat": 4}
    pipe = make_pipe(lambda verb, number: number % every[verb] == 1)
    scores = evaluate(pipe, samples=SAMPLES, seed=SEED)
    prompts = [make(SAMPLES, SEED) for make in (shapes.seen_prompts, shapes.held_out_prompts)]
    questions = [shapes.questions(SAMPLES, SEED, held_out=held_out) for held_out in (False, True)]
    for verb, part, lists in (
        ("reconstruct", scores.reconstruction, prompts),
        ("draw", scores.drawing, prompts),
        ("chat", scores.answers, questions),
    ):
        for number, (found, items) in enumerate(zip((part.seen, part.heldout), lists, strict=True)):
            fails = lambda place, each=every[verb]: place % each == 1  # noqa: E731
            assert found.by_category == expected(items, fails, number * SAMPLES)
        assert part.seen.by_reason == {}
        assert set(part.heldout.by_reason) == {"kind", "pair"}
        assert sum(part.heldout.by_reason.values(), Tally()) == part.heldout.whole
    assert scores.drawing.whole == Tally(96, 144)
    assert scores.reconstruction.whole == Tally(115, 144)
    assert scores.answers.whole == Tally(108, 144)


def test_the_lists_are_the_test_lists_unless_told(make_pipe: MakePipe) -> None:
    for split, options in (("test", {}), ("validation", {"split": "validation"})):
        pipe = make_pipe()
        evaluate(pipe, samples=20, seed=SEED, **options)
        captions = [prompt for prompts, _ in pipe.drawn for prompt in prompts]
        wanted = [
            *shapes.seen_prompts(20, SEED, split=split),
            *shapes.held_out_prompts(20, SEED, split=split),
        ]
        assert captions == [drawing.caption for drawing in wanted]


def test_of_a_color_there_are_three_lists_that_show_it(make_pipe: MakePipe) -> None:
    pipe = make_pipe()
    scores = evaluate(pipe, samples=21, seed=SEED, color="orange")
    captions = [prompt for prompts, _ in pipe.drawn for prompt in prompts]
    assert captions == [item.caption for item in shapes.seen_prompts(21, SEED, color="orange")]
    assert all("orange" in caption.lower() for caption in captions)
    for part in (scores.reconstruction, scores.drawing, scores.answers):
        assert part.seen.whole.total == 21
        assert part.heldout.whole.total == 0
    assert scores.to_json()["color"] == "orange"
    assert "test lists with orange of seed" in scores.table()
    with pytest.raises(ValueError, match="color 'pink' is unknown: use one of red, "):
        evaluate(make_pipe(), samples=1, seed=0, color="pink")


def test_work_is_given_in_lists_with_seeds_of_their_own(make_pipe: MakePipe) -> None:
    pipe, told = make_pipe(), []
    evaluate(pipe, samples=SAMPLES, seed=SEED, batch_size=32, progress=lambda *counts: told.append(counts))
    sizes = [GROUP, SAMPLES - GROUP] * 2
    assert [len(prompts) for prompts, _ in pipe.drawn] == sizes
    wanted = [{"seed": seed, "batch_size": 32, "progress": False} for seed in [SEED, SEED + 1] * 2]
    assert [options for _, options in pipe.drawn] == wanted
    assert pipe.asked == [(size, {"max_new_tokens": MOST_ANSWER_TOKENS, "batch_size": 32}) for size in sizes]
    done = [count for count, _ in told]
    assert done == sorted(done)
    assert told[-1] == (6 * SAMPLES, 6 * SAMPLES)


def test_pictures_are_drawn_at_the_models_own_size(make_pipe: MakePipe) -> None:
    pipe, seen = make_pipe(side=96), []

    def chat(messages: list[Any], **options: Any) -> list[str]:
        seen.extend(message["content"][0]["image"].shape for (message,) in messages)
        return ["Perhaps."] * len(messages)

    pipe.chat = chat
    pipe.config.vision.image_size = 100
    scores = evaluate(pipe, samples=7, seed=SEED)
    assert scores.drawing.whole == scores.reconstruction.whole == Tally(14, 14)
    assert scores.answers.whole == Tally(0, 14)
    assert seen == [(100, 100, 3)] * 14


@pytest.mark.parametrize(
    ("options", "side", "message"),
    [
        ({"samples": 0}, 64, "samples must be a whole number of at least 1, not 0"),
        ({"samples": 2.5}, 64, r"samples must be a whole number of at least 1, not 2\.5"),
        ({"seed": -1}, 64, "seed must be a whole number of at least 0, not -1"),
        ({"split": "train"}, 64, "split 'train' is unknown: use 'validation' or 'test'"),
        ({"progress": 3}, 64, "progress must be None, True, False or a function"),
        ({}, 48, "pictures have a side of 48 pixels, and the world `shapes` needs 64 or more"),
    ],
)
def test_what_cannot_be_evaluated(
    options: dict[str, Any], side: int, message: str, make_pipe: MakePipe
) -> None:
    pipe = make_pipe(side=side)
    with pytest.raises(ValueError, match=message):
        evaluate(pipe, **options)
    assert pipe.done == {"reconstruct": 0, "draw": 0, "chat": 0}


def test_the_sheet_shows_the_first_held_out_prompts(make_pipe: MakePipe) -> None:
    pipe = make_pipe()
    sheet = held_out_sheet(pipe, count=6, seed=SEED)
    ((prompts, options),) = pipe.drawn
    evaluated = make_pipe()
    evaluate(evaluated, samples=8, seed=SEED)
    judged_prompts, judged_options = evaluated.drawn[1]
    assert prompts == judged_prompts[:6]
    assert options["seed"] == judged_options["seed"] == SEED
    assert sheet.width == 4 * 192 + 5 * 12
    with pytest.raises(ValueError, match="count must be at most 64, the pictures of one seed, not 65"):
        held_out_sheet(pipe, count=65)
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, not 0"):
        held_out_sheet(pipe, count=0)


def test_a_real_model(data: Path, model: janus.Janus) -> None:
    """What is judged is what the pipeline's own verbs give, one prompt at a time or many."""
    pipe = janus.Pipeline(model, janus.Processor.from_pretrained(data / "januspro" / "checkpoint"))
    made: dict[str, list[Any]] = {"reconstruct": [], "draw": [], "chat": []}

    def noting(verb: str) -> Callable[..., Any]:
        run = getattr(pipe, verb)

        def noted(given: Any, **options: Any) -> Any:
            result = run(given, **options)
            made[verb] += result if isinstance(result, list) else [result]
            return result

        return noted

    draw = pipe.draw
    for verb in made:
        setattr(pipe, verb, noting(verb))
    scores = evaluate(pipe, samples=1, seed=SEED)
    prompts = shapes.seen_prompts(1, SEED) + shapes.held_out_prompts(1, SEED)
    asked = [item for held_out in (False, True) for item in shapes.questions(1, SEED, held_out=held_out)]
    for verb, whole in (("reconstruct", scores.reconstruction.whole), ("draw", scores.drawing.whole)):
        right = [
            shapes.verify(np.asarray(each), item.spec) for each, item in zip(made[verb], prompts, strict=True)
        ]
        assert whole == Tally(sum(right), 2)
    right = [shapes.correct(item, text) for item, text in zip(asked, made["chat"], strict=True)]
    assert scores.answers.whole == Tally(sum(right), 2)
    both = draw([prompt.caption for prompt in prompts], seed=SEED)
    assert [each.tobytes() for each in both] == [each.tobytes() for each in made["draw"]]
