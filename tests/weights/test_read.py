"""Files of weights that are damaged, foreign or hostile: one line with the path, and no code run."""

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from janus.progress import Progress
from janus.weights.load import load
from janus.weights.read import contents, read, weight_files, windows

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"


def small() -> dict[str, Tensor]:
    return {"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def fails(file: Path) -> str:
    """The one line with which describing the file fails; it holds the path."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the message is checked below and by callers)
        contents([file])
    message = str(raised.value)
    assert str(file) in message
    assert "\n" not in message
    return message


# Whole files


@pytest.mark.parametrize("name", [SAFETENSORS, PICKLE])
def test_contents_and_tensors(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == SAFETENSORS:
        save_file(small(), file)
    else:
        torch.save(small(), file)
    stored = contents([file])
    assert {key: (entry.shape, entry.dtype, entry.bytes) for key, entry in stored.items()} == {
        "a": ((2, 3), torch.float32, 24),
        "b": ((4,), torch.bfloat16, 8),
    }
    tensors = dict(read(file, ["b", "a"]))
    assert list(tensors) == ["b", "a"]
    assert all(torch.equal(tensors[key], value) for key, value in small().items())


def test_windows_stay_below_the_limit_and_hold_everything_once(tmp_path: Path) -> None:
    files = [tmp_path / "x.safetensors", tmp_path / "y.safetensors"]
    sizes = {"x0": 10, "x1": 30, "y0": 100, "x2": 20, "y1": 5, "y2": 5, "x3": 25}
    for file in files:
        save_file({n: torch.zeros(s) for n, s in sizes.items() if n[0] == file.name[0]}, file)
    found = list(windows(contents(files), list(sizes), limit=200))
    assert [(file.name[0], names) for file, names in found] == [
        ("x", ["x0", "x1"]),
        ("x", ["x2", "x3"]),
        ("y", ["y0"]),
        ("y", ["y1", "y2"]),
    ]


def test_a_terminal_shows_how_far_the_reading_of_a_large_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, int]] = []

    def bar(total: int, unit: str, show: bool | None) -> Progress:
        return Progress(total, unit, (lambda *counts: shown.append(counts)) if show is None else False)

    monkeypatch.setattr("janus.weights.read.Progress", bar)
    save_file({"a": torch.zeros(100), "b": torch.zeros(100)}, tmp_path / SAFETENSORS)
    stored = contents([tmp_path / SAFETENSORS])
    list(windows(stored, ["a", "b"], limit=400))
    assert not shown, "a small model is there at once"
    monkeypatch.setattr("janus.weights.read.MEGABYTE", 1)
    monkeypatch.setattr("janus.weights.read.SHOWN_FROM", 800)
    list(windows(stored, ["a", "b"], limit=400))
    assert shown == [(400, 800), (800, 800)]


# Damaged safetensors


def header(values: object, tail: bytes = b"") -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + tail


ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
BROKEN_SAFETENSORS = {
    "empty": b"",
    "four-bytes": b"\x10\0\0\0",
    "length-only": struct.pack("<Q", 64),
    "random": bytes(range(255, -1, -1)) * 16,
    "absurd-length": struct.pack("<Q", 1 << 62) + b"{}",
    "length-beyond-file": struct.pack("<Q", 4096) + b"{}",
    "not-json": struct.pack("<Q", 8) + b"notjson!",
    "list": header([1, 2]),
    "no-data": header(ONE),
    "half-data": header(ONE, b"\0" * 4),
    "too-much-data": header(ONE, b"\0" * 9),
    "wrong-extent": header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8),
    "overlap": header({**ONE, "b": ONE["a"]}, b"\0" * 8),
    "unknown-dtype": header({"a": {"dtype": "Q4", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
    "negative-shape": header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
    "page-of-html": b"<!DOCTYPE html><html><body>404</body></html>",
    "git-lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3391702\n",
}


@pytest.mark.parametrize("case", BROKEN_SAFETENSORS)
def test_broken_safetensors(case: str, tmp_path: Path) -> None:
    file = tmp_path / SAFETENSORS
    file.write_bytes(BROKEN_SAFETENSORS[case])
    assert "is not a whole safetensors file" in fails(file)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1], ids=str)
@pytest.mark.parametrize("name", [SAFETENSORS, PICKLE])
def test_truncated_file(name: str, kept: float, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == SAFETENSORS:
        shutil.copy(checkpoint / SAFETENSORS, file)
    else:
        torch.save(small(), file)
    size = file.stat().st_size
    os.truncate(file, int(size * kept) if isinstance(kept, float) else kept % size)
    assert "fetch it again" in fails(file)


# Damaged, foreign and hostile pickles


class Planted:
    """Unpickling this by Python's rules writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": x}, lambda x: {**small(), "c": [x]}])
def test_code_in_a_pickle_is_never_run(wrap: Callable[[Any], Any], zipped: bool, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / PICKLE
    torch.save(wrap(Planted(marker)), file, _use_new_zipfile_serialization=zipped)
    assert "no code in it was run" in fails(file)
    assert not marker.exists()
    # The file does what it looks like where it is trusted: the test would notice.
    torch.load(file, weights_only=False)
    assert marker.is_dir()


def test_code_in_a_plain_pickle_is_never_run(tmp_path: Path) -> None:
    import pickle

    marker, file = tmp_path / "marker", tmp_path / PICKLE
    file.write_bytes(pickle.dumps({"a": Planted(marker)}))
    fails(file)
    assert not marker.exists()


NOT_WEIGHTS: dict[str, Callable[[], object]] = {
    "list": lambda: list(small().values()),
    "tensor": lambda: torch.zeros(3),
    "number": lambda: {"a": torch.zeros(3), "step": 7},
    "none": lambda: {"a": None},
    "nested": lambda: {"model": small()},
    "number-as-name": lambda: {0: torch.zeros(3)},
    "sparse": lambda: {"a": torch.eye(3).to_sparse()},
    "without-memory": lambda: {"a": torch.empty(3, device="meta")},
    "one-number-as-many": lambda: {"a": torch.zeros(1).expand(2**30)},
    "module": lambda: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("case", NOT_WEIGHTS)
def test_pickle_that_is_no_dict_of_dense_tensors(case: str, tmp_path: Path) -> None:
    file = tmp_path / PICKLE
    torch.save(NOT_WEIGHTS[case](), file)
    fails(file)


def test_tensors_of_unequal_rows(tmp_path: Path) -> None:
    file = tmp_path / PICKLE
    with pytest.warns(UserWarning, match="nested tensors"):
        ragged = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    torch.save({"a": ragged}, file)
    assert "not a dense tensor" in fails(file)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x80\x04junk", bytes(4096)])
def test_pickle_that_is_no_file_of_torch(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / PICKLE
    file.write_bytes(content)
    assert "is not a plain file of weights" in fails(file)


def test_legacy_file_of_torch_is_refused_with_the_reason(tmp_path: Path) -> None:
    """It cannot be mapped, and no release ever came in it."""
    file = tmp_path / PICKLE
    torch.save(small(), file, _use_new_zipfile_serialization=False)
    message = fails(file)
    assert "mmap can only be used with" in message
    assert "convert it to safetensors" in message


def test_each_kind_of_file_under_the_others_name(tmp_path: Path) -> None:
    save_file(small(), tmp_path / PICKLE)
    torch.save(small(), tmp_path / SAFETENSORS)
    assert "is not a plain file of weights" in fails(tmp_path / PICKLE)
    assert "is not a whole safetensors file" in fails(tmp_path / SAFETENSORS)


@pytest.mark.parametrize("name", [SAFETENSORS, PICKLE])
@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_numbers_that_are_no_floats_are_refused_by_name(dtype: torch.dtype, name: str, copied: Path) -> None:
    tensors = load_file(copied / SAFETENSORS)
    (copied / SAFETENSORS).unlink()
    norm = "language_model.model.norm.weight"
    tensors[norm] = torch.ones(tensors[norm].shape).to(dtype)
    save_file(tensors, copied / name) if name == SAFETENSORS else torch.save(tensors, copied / name)
    with pytest.raises(ValueError, match=rf"not floating-point: {norm}$") as raised:
        load(copied, device="cpu")
    assert str(copied) in str(raised.value)


# Files that may not be read


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file may be opened: permissions hold nobody who is root."""

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("name", [SAFETENSORS, PICKLE])
@pytest.mark.usefixtures("forbidden")
def test_a_file_that_may_not_be_read_is_not_called_broken(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    save_file(small(), file) if name == SAFETENSORS else torch.save(small(), str(file))
    for looks in (lambda: contents([file]), lambda: dict(read(file, ["a"]))):
        with pytest.raises(PermissionError) as raised:
            looks()
        assert str(raised.value) == f"{file} cannot be read (Permission denied): mend its permissions"


# Which files


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    for name in (PICKLE, SAFETENSORS):
        (tmp_path / name).touch()
    assert weight_files(tmp_path) == [tmp_path / SAFETENSORS]


def test_single_file_is_preferred_to_shards_and_an_index_to_what_lies_beside_it(tmp_path: Path) -> None:
    shards = ["model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"]
    for name in shards:
        (tmp_path / name).touch()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shards[0]}}))
    assert weight_files(tmp_path) == [tmp_path / shards[0]]
    (tmp_path / SAFETENSORS).touch()
    assert weight_files(tmp_path) == [tmp_path / SAFETENSORS]


def test_shards_whose_index_is_gone(tmp_path: Path) -> None:
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (2, 1)]
    for name in names:
        (tmp_path / name).touch()
    assert weight_files(tmp_path) == [tmp_path / name for name in sorted(names)]


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "model.txt").touch()
    with pytest.raises(FileNotFoundError, match="holds no weights: no model") as raised:
        weight_files(tmp_path)
    assert str(tmp_path) in str(raised.value)
