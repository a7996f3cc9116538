"""Data before training: a file checked, pictures turned into codes, for a checkpoint or for a recipe."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from janus.models.janus import Janus
from janus.processing.processor import Processor
from janus.training.data.outline import Geometry
from janus.training.data.pretokenize import Codes, fingerprint
from janus.training.data.rejects import read_rejects
from janus.training.data.rows import Drawing
from janus.training.data.sources import JsonLines
from janus.training.prepare import Purpose, check_file, tokenize_drawings
from janus.training.recipe.file import dump
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import Data, Optimizer, Ratio, Source, Start
from janus.training.vq_files import save_vq

CPU = torch.device("cpu")
SOURCE = Source(task="drawing", path="data.jsonl")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two rows that are right, one that is longer than 200 tokens, and two that nothing can be made of."""
    Image.new("RGB", (9, 5)).save(tmp_path / "good.png")
    rows = [
        {"prompt": "a cat", "image": "good.png"},
        {"prompt": "a cat", "image": "absent.png"},
        {"prompt": "a " * 300, "image": "good.png"},
        {"prompt": "a dog", "image": "good.png"},
        {"prompt": "a cat"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def written(path: Path, model: Start, *, length: int = 128) -> str:
    recipe = Recipe(
        task="janus",
        model=model,
        train=("image_head",),
        data=Data(sources=(SOURCE,), ratio=Ratio(drawing=1), sequence_length=length),
        optimizer=Optimizer(lr=1e-3),
        steps=1,
        batch=1,
        precision="float32",
    )
    path.write_text(dump(recipe))
    return str(path)


def test_a_file_is_checked_for_a_checkpoint(
    file: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    purpose = Purpose.of(checkpoint, None)
    assert check_file(file, purpose, limit=200) == 1
    assert f"{file}:3: " in capsys.readouterr().out
    assert check_file(file, purpose, limit=200, skip_bad=True) == 0
    rejects = file.parent / "rejects.jsonl"
    assert f"2 rows are passed over: {rejects}" in capsys.readouterr().out
    lines = read_rejects(file, rejects)
    assert lines == [2, 5]
    left = JsonLines(file, lines)
    assert left.lines.tolist() == [1, 3, 4]
    good = file.with_name("good.jsonl")
    good.write_text("".join(json.dumps(left.raw(index)) + "\n" for index in range(3)))
    assert check_file(good, purpose) == 0
    assert "limit 16384 tokens" in capsys.readouterr().out


def test_a_recipe_knows_the_limit(
    file: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path / "recipe.toml", Start(checkpoint=checkpoint))
    assert check_file(file, Purpose.of(None, recipe)) == 1
    told = capsys.readouterr().out
    assert "limit 128 tokens" in told
    assert f"{file}:3: " in told
    with pytest.raises(ValueError, match="limit must be a whole number of at least 1, not 0"):
        check_file(file, Purpose.of(None, recipe), limit=0)


def test_a_janusflow_draws_latents(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of its own autoencoder's size; codes are none of its."""
    folder = Path(shutil.copytree(data / "janusflow" / "checkpoint", tmp_path / "flow"))
    shutil.copytree(data / "janusflow" / "vae", folder / "vae")
    Image.new("RGB", (9, 5)).save(tmp_path / "good.png")
    rows = [{"prompt": "a cat", "image": "good.png"}, {"prompt": "a cat", "codes": [1, 2]}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert check_file(path, Purpose.of(str(folder), None)) == 1
    told = capsys.readouterr().out
    assert "data.jsonl:2: codes are of a VQ tokenizer, and this model draws latents" in told
    prompt = len(Processor.from_pretrained(folder).draw_prompt("a cat"))
    assert f"{prompt - 1 + 1 + 16}" in told
    with pytest.raises(ValueError, match="draws latents, not codes"):
        tokenize_drawings(str(path), tmp_path / "codes", Purpose.of(str(folder), None), device=CPU)


def test_without_the_autoencoder_all_but_drawings_is_checked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(start: Start) -> None:
        raise FileNotFoundError("somebody/vae: no copy in the cache")

    monkeypatch.setattr("janus.training.prepare.start_vae_config", nowhere)
    purpose = Purpose.of(str(data / "janusflow" / "checkpoint"), None)
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "plain"}\n')
    assert check_file(path, purpose) == 0
    path.write_text('{"text": "plain"}\n{"prompt": "a cat", "image": "gone.png"}\n')
    assert check_file(path, purpose) == 1
    told = capsys.readouterr().out
    assert "1 rows that are malformed" in told
    assert "their length is unknown: somebody/vae: no copy in the cache" in told


def test_drawings_become_codes_of_the_tokenizer_that_a_recipe_names(
    file: Path, tmp_path: Path, model: Janus, checkpoint: str
) -> None:
    """As before stage 1, where there is a tokenizer that was trained and no model yet."""
    good = file.with_name("good.jsonl")
    good.write_text("".join(json.dumps(JsonLines(file).raw(index)) + "\n" for index in (0, 3)))
    sizes = replace(model.config, extra={})
    begun = Start(architecture=sizes, processor=checkpoint)
    purpose = Purpose.of(None, written(tmp_path / "random.toml", begun))
    with pytest.raises(ValueError, match=r"is of random weights: name a trained one as model\.vq"):
        tokenize_drawings(str(good), tmp_path / "codes", purpose, device=CPU)
    save_vq(model.vq, tmp_path / "vq")
    recipe = written(tmp_path / "recipe.toml", replace(begun, vq=str(tmp_path / "vq")))
    tokenize_drawings(str(good), tmp_path / "one", Purpose.of(None, recipe), device=CPU)
    tokenize_drawings(str(good), tmp_path / "other", Purpose.of(checkpoint, None), device=CPU)
    by_recipe, by_checkpoint = (
        Codes(tmp_path / name, fingerprint=fingerprint(model.vq), geometry=Geometry.of(model.config)).row(1)
        for name in ("one", "other")
    )
    assert isinstance(by_recipe, Drawing)
    assert isinstance(by_checkpoint, Drawing)
    assert torch.equal(torch.as_tensor(by_recipe.codes), torch.as_tensor(by_checkpoint.codes))
    assert len(torch.as_tensor(by_recipe.codes)) == model.config.picture_tokens


def test_what_data_are_for_is_named_once(tmp_path: Path, checkpoint: str, model: Janus) -> None:
    for both in ((None, None), (checkpoint, "sft")):
        with pytest.raises(ValueError, match="a hub id or a folder with -m, or the recipe that will"):
            Purpose.of(*both)
    with pytest.raises(ValueError, match="shapes-vq trains on pictures alone"):
        Purpose.of(None, "shapes-vq")
    save_vq(model.vq, tmp_path)
    with pytest.raises(ValueError, match="is no model that reads words: name a whole model"):
        Purpose.of(str(tmp_path), None).config()
