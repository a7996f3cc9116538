"""What `janus eval shapes` prints and writes."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import janus
from janus.evaluation import commands
from janus.evaluation.shapes import evaluate, held_out_sheet

MakePipe = Callable[..., Any]


def fails(verb: str, number: int) -> bool:
    return number % 4 == 0


def test_prints_the_table_and_writes_numbers_and_pictures(
    make_pipe: MakePipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, grid = tmp_path / "new" / "scores.json", tmp_path / "grid.png"
    load = partial(make_pipe, fails)
    assert commands.shapes(load, samples=20, seed=3, json_path=numbers, grid_path=grid) == 0
    # The pictures of the sheet are drawn after those that are judged.
    pipe = make_pipe(fails)
    scores = evaluate(pipe, samples=20, seed=3)
    output = capsys.readouterr()
    assert output.out == scores.table() + "\n"
    assert output.err == ""
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert written == scores.to_json()
    assert written["drawing"]["seen"] == 0.75
    with Image.open(grid) as picture:
        assert picture.tobytes() == held_out_sheet(pipe, seed=3).tobytes()


def test_split_and_batch_size_are_passed_on(make_pipe: MakePipe, tmp_path: Path) -> None:
    numbers, pipe = tmp_path / "scores.json", make_pipe()
    commands.shapes(lambda: pipe, samples=7, seed=3, split="validation", batch_size=5, json_path=numbers)
    assert json.loads(numbers.read_text())["split"] == "validation"
    assert {options["batch_size"] for _, options in pipe.drawn + pipe.asked} == {5}


def test_a_checkpoint_from_end_to_end(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, numbers = data / "januspro" / "checkpoint", tmp_path / "scores.json"
    load = partial(janus.load, folder, dtype="float32", device="cpu")
    assert commands.shapes(load, samples=1, json_path=numbers) == 0
    written = json.loads(numbers.read_text())
    assert {"reconstruction", "drawing", "answers"} <= set(written)
    for part in ("drawing", "answers"):
        assert 0 <= written[part]["seen"] <= 1
        assert written["details"][part]["both"]["all"]["total"] == 2
    assert capsys.readouterr().out.startswith("| task ")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grid_path": "grid.jpg"}, ValueError, r"grid\.jpg must be a file that ends in \.png: .* --grid"),
        (
            {"grid_path": "folder.png"},
            ValueError,
            r"folder\.png must be a file that ends in \.png: .* --grid",
        ),
        ({"json_path": "folder.png"}, ValueError, r"folder\.png must be a file: name another with --json"),
        ({"json_path": "file/scores.json"}, OSError, "file"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_model_is_loaded(
    options: dict[str, str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    paths: dict[str, Any] = {name: tmp_path / path for name, path in options.items()}
    with pytest.raises(error, match=message):
        commands.shapes(lambda: pytest.fail("the model was loaded"), **paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number of at least 1, not 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"split": "train"}, "split 'train' is unknown: use 'validation' or 'test'"),
        ({"color": "pink"}, "color 'pink' is unknown: use one of red, "),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
    ],
)
def test_a_wrong_option_is_told_before_the_model_is_loaded(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        commands.shapes(
            lambda: pytest.fail("the model was loaded"), json_path=tmp_path / "new" / "scores.json", **options
        )
    assert not (tmp_path / "new").exists()


def test_there_is_no_grid_of_a_color(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--grid draws what is held out, and --color red leaves that out"):
        commands.shapes(lambda: pytest.fail("loaded"), color="red", grid_path=tmp_path / "grid.png")
