"""The model that is shipped: what it weighs, that it is the default, and that it can do what it is for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import janus
from janus.apps import cli
from janus.evaluation.shapes import answer, draw, reconstruct
from janus.pipeline import Pipeline, _introduce_shapes
from janus.training.worlds import shapes
from janus.weights.hub import SHAPES, find

REPOSITORY = Path(__file__).resolve().parents[2]
SEED = 11
COUNT = 70  # tasks of a list


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return janus.load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    """What `janus eval shapes` measured, a thousand tasks to a list: the card's table."""
    return json.loads((SHAPES / "scores.json").read_text())


def is_as_stated(right: list[bool], stated: float) -> bool:
    """Whether a short list may be as good as the long one was: within three standard deviations of it."""
    return sum(right) / len(right) >= stated - 3 * (stated * (1 - stated) / len(right)) ** 0.5


def none(count: int) -> None:
    """Nobody is told how far it is."""


def test_it_is_small_and_whole() -> None:
    names = {file.name for file in SHAPES.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "scores.json", "tokenizer.json"} <= names
    assert sum(file.stat().st_size for file in SHAPES.iterdir()) < 20e6
    assert json.loads((SHAPES / "config.json").read_text())["model_type"] == "multi_modality"


def test_it_is_what_nobody_named_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    _introduce_shapes.cache_clear()
    assert isinstance(janus.load(device="cpu").model, janus.Janus)
    told = capsys.readouterr().err
    assert "this is shapes" in told
    assert "deepseek-ai/Janus-Pro-1B" in told
    janus.load(device="cpu")
    assert capsys.readouterr().err == ""


def test_its_name_serves_everywhere_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("shapes") == SHAPES
    assert janus.Janus.from_pretrained("shapes").config == janus.load(SHAPES).config
    (tmp_path / "shapes").mkdir()
    assert find("shapes").resolve() == tmp_path / "shapes"


def test_its_card_states_what_it_is_drawn_with(pipe: Pipeline) -> None:
    stated = json.loads((SHAPES / "generation_config.json").read_text())
    (own,) = pipe.draw("a red circle", seed=SEED)
    (same,) = pipe.draw(
        "a red circle", seed=SEED, guidance=stated["guidance_scale"], temperature=stated["temperature"]
    )
    assert own.tobytes() == same.tobytes()


def test_pictures_survive_its_codes(pipe: Pipeline, scores: dict[str, Any]) -> None:
    drawings = shapes.seen_prompts(COUNT, SEED) + shapes.held_out_prompts(COUNT, SEED)
    assert is_as_stated(reconstruct(pipe, drawings, none), scores["reconstruction"])


@pytest.mark.parametrize("name", ["seen", "heldout"])
def test_it_draws_and_answers_as_its_card_states(name: str, pipe: Pipeline, scores: dict[str, Any]) -> None:
    held_out = name == "heldout"
    prompts = shapes.held_out_prompts if held_out else shapes.seen_prompts
    assert is_as_stated(draw(pipe, prompts(COUNT, SEED), SEED, None), scores["drawing"][name])
    questions = shapes.questions(COUNT, SEED, held_out=held_out)
    assert is_as_stated(answer(pipe, questions, None), scores["answers"][name])


def table_of(file: Path) -> list[list[str]]:
    """The cells of the table of scores in a document."""
    text = file.read_text()
    rows = text[text.index("| task           | category") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_documents_have_these_scores(scores: dict[str, Any]) -> None:
    card = table_of(SHAPES / "README.md")
    assert card == table_of(REPOSITORY / "docs" / "training.md")
    whole = {cells[0]: cells[2:] for cells in card if cells[1] == "all"}
    front = (REPOSITORY / "README.md").read_text()
    for part in ("drawing", "answers"):
        for name, cell in zip(("seen", "heldout"), whole[part], strict=True):
            assert cell.startswith(f"{scores[part][name]:.1%} (".replace("%", " %"))
            assert f"{scores[part][name]:.0%}".replace("%", " %") in front
    assert scores["samples"] == 1000
    assert scores["split"] == "test"


def test_what_a_newcomer_tries_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The words of README.md: drawn as they say, and the question about it answered."""
    file, caption = tmp_path / "picture.png", "a red circle left of a blue square"
    assert f'draw "{caption}" --seed 7' in (REPOSITORY / "README.md").read_text()
    assert cli.main(["draw", caption, "--seed", "7", "-o", str(file)]) == 0
    assert shapes.verify(np.asarray(Image.open(file)), caption)
    for question, wanted in (("What color is the circle?", "red"), ("How many objects are there?", "two")):
        capsys.readouterr()
        assert cli.main(["ask", str(file), question]) == 0
        assert capsys.readouterr().out.strip() == wanted


def test_the_commands_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    assert str(SHAPES) in capsys.readouterr().out


def test_it_goes_to_transformers_layout_and_back(tmp_path: Path) -> None:
    model = janus.Janus.from_pretrained(SHAPES, device="cpu", dtype="float32")
    model.save_pretrained(tmp_path / "there", layout="transformers")
    back = janus.Janus.from_pretrained(tmp_path / "there", device="cpu", dtype="float32")
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())
