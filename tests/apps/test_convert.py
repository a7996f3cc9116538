"""`janus convert` and `janus info` of checkpoints that are not all there, and of options that are wrong."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from janus.apps import cli, info
from janus.weights.load import load

INDEX = "model.safetensors.index.json"

load_module = importlib.import_module("janus.weights.load")  # the package has a function of that name


@pytest.fixture
def checkpoint(data: Path) -> Path:
    return data / "januspro" / "checkpoint"


@pytest.fixture
def sharded(checkpoint: Path, tmp_path: Path) -> Path:
    """The small checkpoint as transformers has it, whose config ties the head unless a file holds it."""
    folder = tmp_path / "sharded"
    with pytest.warns(UserWarning, match="transformers"):
        load(checkpoint, device="cpu").save_pretrained(folder, layout="transformers", max_shard_size="1MB")
    return folder


# janus info


def described(folder: Path) -> dict[str, Any]:
    facts = info.describe(folder, revision=None, pictures=1, prompt=64, answer=512)
    return {name: value for name, value in facts.items() if name != "model"}


def test_info_needs_no_shards_where_there_is_an_index(sharded: Path) -> None:
    whole = described(sharded)
    assert whole["config"]["language"]["tied_head"] is False
    for shard in sharded.glob("*.safetensors"):
        shard.unlink()
    assert described(sharded) == whole


def test_info_reads_nothing_of_shards_that_are_not_all_there(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert described(sharded)["config"]["language"]["tied_head"] is False
    first, *others = sorted(sharded.glob("*.safetensors"))
    others[0].unlink()
    first.write_bytes(b"half of it")
    assert described(sharded)["layout"] == "transformers"


# janus convert


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "int7"], "dtype 'int7' is not supported: name bfloat16, float16, float32"),
        (["--max-shard-size", "banana"], "max_shard_size 'banana' is not a size: name bytes"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_fetched_or_made(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_module, "inspect", lambda *given, **named: pytest.fail("it was looked at"))
        arguments = ["convert", "deepseek-ai/Janus-Pro-1B", str(there), "--layout", "deepseek", *options]
        assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"janus: error: {message}")
    assert error.count("\n") == 1
    assert not there.exists()


def test_a_full_disk_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("janus.weights.write.save_file", fail)
    assert cli.main(["convert", str(checkpoint), str(tmp_path / "there"), "--layout", "deepseek"]) == 2
    error = capsys.readouterr().err
    assert "No space left on device (os error 28)): make room, or name another folder" in error
    assert error.count("\n") == 1
    assert list((tmp_path / "there").iterdir()) == []
