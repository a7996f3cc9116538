"""Guidance and temperature: chosen on the validation list alone, written beside what a file states."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import janus
from janus.evaluation.defaults import choose_defaults, write_defaults
from janus.evaluation.intervals import Tally
from janus.training.worlds import shapes
from janus.weights.processor_config import read_generation_defaults, read_side_files

MakePipe = Callable[..., Any]


def pipe_with(make_pipe: MakePipe, rights: dict[tuple[float, float], int]) -> Any:
    """A pipe that draws the first so many prompts of a call right, by guidance and temperature."""
    pipe = make_pipe()
    draw = pipe.draw

    def limited(prompt: list[str], **options: Any) -> list[Any]:
        count = rights[options["guidance"], options["temperature"]]
        return [*draw(prompt, **options)[:count], *[pipe.empty] * (len(prompt) - count)]

    pipe.draw = limited
    return pipe


@pytest.mark.parametrize(
    ("rights", "guidance", "temperature"),
    [
        ({(1, 1.0): 3, (1, 0.5): 4, (2, 1.0): 5, (2, 0.5): 9}, 2, 0.5),
        ({(1, 1.0): 9, (1, 0.5): 4, (2, 1.0): 5, (2, 0.5): 8}, 1, 1.0),
        ({(1, 1.0): 5, (1, 0.5): 4, (2, 1.0): 5, (2, 0.5): 5}, 1, 1.0),
        ({(1, 1.0): 7, (1, 0.5): 7, (2, 1.0): 7, (2, 0.5): 7}, 1, 0.5),
        ({(1, 1.0): 0, (1, 0.5): 0, (2, 1.0): 0, (2, 0.5): 0}, 1, 0.5),
    ],
    ids=["best", "best at no guidance", "of equals the lower guidance", "then temperature", "none right"],
)
def test_the_best_pair(
    rights: dict[tuple[float, float], int], guidance: float, temperature: float, make_pipe: MakePipe
) -> None:
    pipe = pipe_with(make_pipe, rights)
    choice = choose_defaults(pipe, guidances=(2, 1), temperatures=(1.0, 0.5, 1.0), prompts=10, seed=3)
    assert (choice.guidance, choice.temperature) == (guidance, temperature)
    assert choice.tallies == {pair: Tally(right, 10) for pair, right in rights.items()}


def test_of_a_flow_it_is_a_guidance_that_is_chosen(make_pipe: MakePipe) -> None:
    pipe = make_pipe()
    draw = pipe.draw
    pipe.draw = lambda prompt, **options: (
        draw(prompt, **options) if options["guidance"] == 2 else [pipe.empty] * len(prompt)
    )
    choice = choose_defaults(pipe, guidances=(3, 2, 1), prompts=10, seed=3)
    assert (choice.guidance, choice.temperature) == (2, None)
    assert choice.tallies == {(guidance, None): Tally(10 * (guidance == 2), 10) for guidance in (1, 2, 3)}
    assert [sorted(options) for _, options in pipe.drawn] == [["batch_size", "guidance", "progress", "seed"]]


def test_only_the_validation_list_of_seen_combinations_is_drawn(make_pipe: MakePipe) -> None:
    pipe, told = make_pipe(), []
    choose_defaults(
        pipe,
        guidances=(1, 3),
        temperatures=(0.7,),
        prompts=70,
        seed=3,
        batch_size=8,
        progress=lambda *counts: told.append(counts),
    )
    wanted = [drawing.caption for drawing in shapes.seen_prompts(70, 3, split="validation")]
    assert [prompts for prompts, _ in pipe.drawn] == [wanted[:64], wanted[64:]] * 2
    for number, (_, options) in enumerate(pipe.drawn):
        settings = {"guidance": (1, 3)[number // 2], "temperature": 0.7}
        assert options == {"seed": 3 + number % 2, "batch_size": 8, "progress": False, **settings}
    kinds = {kind for caption in wanted for kind in shapes.parse(caption).kinds}
    assert kinds
    assert not kinds & set(shapes.HELD_OUT_KINDS)
    assert told[-1] == (140, 140)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidances": ()}, "no guidance or no temperature to choose from"),
        ({"temperatures": ()}, "no guidance or no temperature to choose from"),
        (
            {"guidances": (2, float("nan"))},
            "guidance must be a number from -1000000 to 1000000, 1 for none, not nan",
        ),
        ({"temperatures": (1, -1)}, "temperature must be 0 .greedy. or more, up to 1000000, not -1"),
        ({"prompts": 0}, "prompts must be a whole number of at least 1, not 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
    ],
)
def test_errors_come_before_the_work(options: dict[str, Any], message: str, make_pipe: MakePipe) -> None:
    pipe = make_pipe()
    given = {"guidances": (1,), "temperatures": (1,), "prompts": 4, "seed": 0, **options}
    with pytest.raises(ValueError, match=message):
        choose_defaults(pipe, **given)
    assert pipe.done["draw"] == 0


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data / "januspro" / "checkpoint", tmp_path / "copied"))


def test_a_pipeline_draws_with_what_was_written(copied: Path) -> None:
    write_defaults(copied, guidance=2.5, temperature=0)
    pipe = janus.load(copied, dtype="float32")
    (drawn,) = pipe.draw("a cat", seed=7)
    assert drawn.tobytes() == pipe.draw("a cat", seed=7, guidance=2.5, temperature=0)[0].tobytes()
    assert drawn.tobytes() != pipe.draw("a cat", seed=7, guidance=1, temperature=0)[0].tobytes()


def test_without_a_temperature_none_is_written(copied: Path) -> None:
    file = copied / "generation_config.json"
    file.write_text('{"temperature": 0.75}')
    write_defaults(copied, guidance=2)
    assert json.loads(file.read_text()) == {"temperature": 0.75, "guidance_scale": 2}
    write_defaults(copied, guidance=np.int64(3), temperature=np.float32(0.5))
    assert json.loads(file.read_text()) == {"temperature": 0.5, "guidance_scale": 3}


def test_all_else_is_kept(copied: Path) -> None:
    file = copied / "generation_config.json"
    others = {"temperature": 9, "eos_token_id": 1, "generation_kwargs": {"boi_token_id": 5}, "note": "größer"}
    file.write_text(json.dumps(others), encoding="utf-8")
    names = sorted(path.name for path in copied.iterdir())
    assert write_defaults(copied, guidance=2, temperature=0.4) == file
    assert json.loads(file.read_text(encoding="utf-8")) == {**others, "guidance_scale": 2, "temperature": 0.4}
    assert read_generation_defaults(read_side_files(copied)) == {"guidance": 2, "temperature": 0.4}
    assert sorted(path.name for path in copied.iterdir()) == names


@pytest.mark.parametrize("content", ["[]", "{", "3", ""])
def test_a_file_that_is_no_object_is_left_alone(content: str, copied: Path) -> None:
    file = copied / "generation_config.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        write_defaults(copied, guidance=2, temperature=0.4)
    assert file.read_text() == content


def test_what_cannot_be_drawn_with_is_not_written(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="guidance must be a number from"):
        write_defaults(copied, guidance=float("inf"), temperature=1)
    with pytest.raises(ValueError, match="temperature must be 0"):
        write_defaults(copied, guidance=1, temperature=-1)
    assert not (copied / "generation_config.json").exists()
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        write_defaults(tmp_path / "nowhere", guidance=1, temperature=1)
