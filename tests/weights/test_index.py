"""The index of a sharded checkpoint: what it may point at, and shards that do not hold what it says."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from janus.models.janus import Janus
from janus.weights.hub import missing
from janus.weights.load import load
from janus.weights.read import contents, weight_files

INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(copied: Path) -> Path:
    """The small checkpoint in two shards, the first half of the names in the first."""
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = list(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for shard, half in zip(SHARDS, halves, strict=True):
        save_file({name: tensors[name] for name in half}, copied / shard)
    write_index(copied, {name: shard for shard, half in zip(SHARDS, halves, strict=True) for name in half})
    return copied


def refused(folder: Path, kind: type[Exception] = ValueError) -> str:
    """The one line with which the folder's index is refused; it holds the folder's path."""
    with pytest.raises(kind) as raised:
        weight_files(folder)
    assert type(raised.value) is kind
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "./model.safetensors",
        "..\\outside.safetensors",
        "C:\\outside.safetensors",
        5,
        None,
    ],
    ids=str,
)
def test_index_that_points_outside_its_folder(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "outside.safetensors", folder / "sub" / "model.safetensors"):
        save_file({"a": torch.zeros(2)}, file)
    write_index(folder, {"a": name})
    assert f"points outside its folder, to {name!r}" in refused(folder)


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_index_that_points_at_a_folder(name: str, tmp_path: Path) -> None:
    write_index(tmp_path, {"a": name})
    with pytest.raises((FileNotFoundError, ValueError), match="index"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"weight_map": null}',
        b'{"weight_map": []}',
        b'{"weight_map": "model.safetensors"}',
        b'{"weight_map": {"a": {"file": "x"}}}',
        b'{"weight_map": {"a": ["x"]}}',
        b'{"weight_map": {"a": "x", "b": 1}}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
    ids=lambda content: content[:40].decode("latin1"),
)
def test_index_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(content)
    assert "is not an index of weights" in refused(tmp_path)


def test_index_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_index(tmp_path, {"a": SHARDS[0]})

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)  # root may read what others may not
    monkeypatch.setattr(Path, "read_text", refuse)
    message = refused(tmp_path, PermissionError)
    assert message == f"{tmp_path / INDEX} cannot be read (Permission denied): mend its permissions"
    assert missing(tmp_path) == ["config.json", f"a readable {INDEX}"]


@pytest.mark.parametrize("name", ["x" * 300, "x\0.safetensors"], ids=["long", "null"])
def test_index_of_a_name_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    write_index(tmp_path, {"a": name})
    assert f"lacks 1 of the 1 files that {INDEX} names: x" in refused(tmp_path, FileNotFoundError)


def test_index_of_nothing(tmp_path: Path) -> None:
    write_index(tmp_path, {})
    assert "names no files" in refused(tmp_path)


def test_missing_shards_are_named_up_to_ten(tmp_path: Path) -> None:
    names = [f"model-{number:05}-of-00012.safetensors" for number in range(1, 13)]
    write_index(tmp_path, {str(number): name for number, name in enumerate(names)})
    (tmp_path / names[0]).touch()
    message = refused(tmp_path, FileNotFoundError)
    assert "lacks 11 of the 12 files" in message
    assert all(name in message for name in names[1:11])
    assert names[11] not in message
    assert names[0] not in message


def test_sharded_checkpoint_is_the_whole_one(
    sharded: Path, checkpoint: Path, assert_equal: Callable[[Janus, Janus], None]
) -> None:
    assert_equal(load(sharded, device="cpu"), load(checkpoint, device="cpu"))


def test_swapped_shards_load_as_what_they_hold(
    sharded: Path, checkpoint: Path, assert_equal: Callable[[Janus, Janus], None]
) -> None:
    """The index only lists the files; what each holds is read from the file itself."""
    first, second = (sharded / shard for shard in SHARDS)
    first.rename(sharded / "aside")
    second.rename(first)
    (sharded / "aside").rename(second)
    assert_equal(load(sharded, device="cpu"), load(checkpoint, device="cpu"))


def test_shard_that_lacks_what_the_index_says(sharded: Path) -> None:
    tensors = load_file(sharded / SHARDS[1])
    lost = sorted(tensors)[:3]
    save_file({name: tensor for name, tensor in tensors.items() if name not in lost}, sharded / SHARDS[1])
    with pytest.raises(ValueError, match="missing: ") as raised:
        load(sharded, device="cpu")
    assert str(sharded) in str(raised.value)
    assert all(name in str(raised.value) for name in lost)


def test_index_that_forgets_a_shard(sharded: Path) -> None:
    held: dict[str, Tensor] = load_file(sharded / SHARDS[0])
    write_index(sharded, dict.fromkeys(held, SHARDS[0]))
    forgotten = [
        name
        for name in load_file(sharded / SHARDS[1])
        if "attn_pool" not in name and "codebook_used" not in name
    ]
    with pytest.raises(ValueError, match="missing: ") as raised:
        load(sharded, device="cpu")
    assert str(sharded) in str(raised.value)
    assert str(raised.value).endswith(f"and {len(forgotten) - 10} more")


def test_same_tensor_in_two_shards(sharded: Path) -> None:
    tensors = load_file(sharded / SHARDS[0])
    twice = next(iter(tensors))
    save_file({**load_file(sharded / SHARDS[1]), twice: tensors[twice]}, sharded / SHARDS[1])
    with pytest.raises(ValueError, match="keep one checkpoint a folder") as raised:
        contents(weight_files(sharded))
    message = str(raised.value)
    assert all(part in message for part in (twice, *SHARDS, str(sharded)))


def test_damaged_shard_is_named(sharded: Path) -> None:
    (sharded / SHARDS[1]).write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="is not a whole safetensors file") as raised:
        load(sharded, device="cpu")
    assert str(sharded / SHARDS[1]) in str(raised.value)


def test_two_sets_of_shards_without_an_index(sharded: Path) -> None:
    """Shards of two downloads in one folder are never mixed."""
    (sharded / INDEX).unlink()
    tensors: dict[str, Any] = load_file(sharded / SHARDS[0])
    save_file(tensors, sharded / "model-00001-of-00003.safetensors")
    with pytest.raises(ValueError, match="keep one checkpoint a folder"):
        load(sharded, device="cpu")
