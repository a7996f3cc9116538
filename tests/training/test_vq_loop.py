"""Runs that train the picture tokenizer: they go on bit by bit, and what they write is read back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers.runs import quietly, records, whole_log, write_rows
from janus.training import train
from janus.training.checkpoint import newest
from janus.training.recipe.file import dump, read_recipe
from janus.training.recipe.recipe import Recipe
from janus.training.vq_files import load_vq

# Runs are stopped before all of their phases have come, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:vq.*is never reached")

RECIPE = """
task = "vq"
train = ["encoder", "codebook", "decoder"]
steps = 5
batch = 2
precision = "float32"
ema = 0.5
[model]
architecture.vq = {{ codes = 16, channels = 32, encoder_multipliers = [1, 1], latent_channels = 32 }}
[data]
workers = 0
sources = [{{ task = "drawing", path = "{data}" }}]
[optimizer]
lr = 1e-3
[schedule]
kind = "constant"
warmup = 2
[log]
every = 1
samples_every = 2
pictures = [{{ picture = "{picture}" }}]
tensorboard = false
[checkpoint]
every = 2
[vq]
picture_size = 16
quantize_from = 2
discriminator_from = 3
discriminator_channels = 4
discriminator_layers = 1
revive_every = 2
start_latents = 64
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("data")
    rows = write_rows(folder, [f"color {number}" for number in range(5)])
    file = folder / "vq.toml"
    file.write_text(RECIPE.format(data=rows, picture=folder / "1.png"))
    return read_recipe(file)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("straight")
    return folder, quietly(recipe, folder)


def test_what_is_logged(straight: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, steps = straight
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5]
    assert [record["rate"] for record in steps] == [5e-4, 1e-3, 1e-3, 1e-3, 1e-3]
    assert ["codes_used" in record for record in steps] == [False, False, True, True, True]
    assert ["discriminator" in record for record in steps] == [False, False, False, True, True]
    shown = [record for record in whole_log(folder) if "drawn" in record]
    assert [record["step"] for record in shown] == [2, 4, 5]  # every second, and the last
    width, height = Image.open(folder / shown[0]["drawn"][0]["picture"]).size
    assert (width, height) == (2 + 18, 2 + 2 * 18)  # a picture above what became of it


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_goes_on_with_the_same_bits(
    stop: int, recipe: Recipe, straight: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Before the codebook starts, before the discriminator does, and afterwards."""
    quietly(replace(recipe, steps=stop), tmp_path)
    quietly(recipe, tmp_path)
    # (What is shown at the end of a run is shown there, too, if it goes on.)
    found = [record for record in whole_log(tmp_path) if "drawn" not in record or record["step"] != 3]
    assert found == whole_log(straight[0])
    ours, theirs = load_vq(tmp_path), load_vq(straight[0])
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_what_is_written_is_the_average(straight: tuple[Path, list[dict[str, Any]]]) -> None:
    written = dict(load_vq(straight[0]).named_parameters())
    # Its entries are written anew as training goes, and what they were is no part of what they are.
    codebook = written.pop("codebook")
    learned = {"model.codebook": torch.zeros_like(codebook)}
    newest(straight[0] / "checkpoints").load(learned)
    assert torch.equal(learned["model.codebook"], codebook)
    saved = {f"average.{name}": torch.zeros_like(tensor) for name, tensor in written.items()}
    newest(straight[0] / "checkpoints").load(saved)
    for name, tensor in written.items():
        assert torch.equal(saved[f"average.{name}"], tensor), name


def test_moments_are_written_once(straight: tuple[Path, list[dict[str, Any]]]) -> None:
    found = newest(straight[0] / "checkpoints")
    assert "optimizer" not in found.shared()["state"]
    assert "discriminator_optimizer" in found.shared()["state"]


def test_what_never_comes_about_is_told(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"^vq.discriminator_from = 3 is never reached in 3 steps: lower it"):
        quietly(replace(recipe, steps=3), tmp_path)


def test_a_tokenizer_begins_where_another_ended(
    recipe: Recipe, straight: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    start = replace(recipe.model, architecture=None, checkpoint=str(straight[0]))
    learning = replace(recipe.vq, quantize_from=0, start_latents=None, revive_every=None)
    goes_on = replace(recipe, model=start, vq=learning, steps=2)
    found = quietly(goes_on, tmp_path)
    assert found[0]["reconstruction"] < straight[1][0]["reconstruction"]
    # Its codebook goes on with it, unless a start is asked for.
    assert goes_on.vq_training().start_latents == 0
    assert replace(goes_on, vq=replace(learning, start_latents=50)).vq_training().start_latents == 50
    assert replace(recipe, vq=learning).vq_training().start_latents is None
    before, after = (
        load_vq(folder, recipe.model.architecture).codebook for folder in (straight[0], tmp_path)
    )
    # Two steps of Adam, of about the rate at most each, and not the latents of a batch.
    assert (after - before).abs().max() <= 3 * recipe.optimizer.lr


def test_two_processes_train_as_one_run(
    recipe: Recipe,
    tmp_path: Path,
    torchrun: Callable[..., Any],
    straight: tuple[Path, list[dict[str, Any]]],
) -> None:
    file = tmp_path / "vq.toml"
    file.write_text(dump(recipe))
    done = torchrun(Path(__file__).with_name("run_rank.py"), file, tmp_path / "run", 3)
    assert done.returncode == 0, done.stderr
    assert newest(tmp_path / "run" / "checkpoints").ranks == 2
    two = records(tmp_path / "run")
    one = straight[1]
    # Before codes are chosen, which rounding may tip: the same pictures, each process half of them.
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
    assert [record["step"] for record in quietly(recipe, tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_scenes_of_a_world_are_shown_where_they_can_be_seen(recipe: Recipe, tmp_path: Path) -> None:
    shows = replace(recipe, steps=2, log=replace(recipe.log, world="shapes", scenes=2))
    with pytest.raises(
        ValueError, match="its scenes need 64 pixels a side, and the model's pictures have 16"
    ):
        train(shows, tmp_path / "small", device="cpu", show=lambda line: None)
    assert recipe.vq is not None
    large = replace(shows, batch=1, vq=replace(recipe.vq, picture_size=64))
    train(large, tmp_path / "large", device="cpu", show=lambda line: None)
    (drawn,) = [record for record in whole_log(tmp_path / "large") if "drawn" in record]
    with Image.open(tmp_path / "large" / drawn["drawn"][0]["picture"]) as grid:
        assert grid.width > 3 * 64  # a picture of the recipe and two scenes
