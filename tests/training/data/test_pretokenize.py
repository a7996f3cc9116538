"""Codes on disk: what the tokenizer gives, whole shards or none, and never another tokenizer's."""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from janus.models.janus import Janus
from janus.models.vq import VQ
from janus.processing.processor import Processor
from janus.training.data import pretokenize as module
from janus.training.data.documents import Builder
from janus.training.data.example import picture_target
from janus.training.data.limits import Guard
from janus.training.data.loader import Loader
from janus.training.data.mixture import Mixture, Part
from janus.training.data.outline import Geometry, outline
from janus.training.data.pretokenize import Codes, fingerprint, pretokenize
from janus.training.data.rows import Drawing, Row
from janus.training.data.sources import Table, World

COUNT = 7


class Counted(Table):
    """A table that counts how often each of its rows is read, and may stop."""

    def __init__(self, rows: list[dict[str, Any]], stop: int | None = None) -> None:
        super().__init__(rows, "pictures")
        self.read: list[int] = []
        self.stop = stop

    def row(self, index: int, seed: int = 0) -> Row:
        if index == self.stop:
            raise KeyboardInterrupt
        self.read.append(index)
        return super().row(index, seed)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {"prompt": f"number {number}", "image": random.integers(0, 256, (20, 30, 3), dtype=np.uint8)}
        for number in range(COUNT)
    ]


@pytest.fixture(scope="module")
def options(processor: Processor, geometry: Geometry) -> dict[str, Any]:
    return {"processor": processor, "geometry": geometry, "shard_rows": 3, "batch_size": 2}


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory,
    model: Janus,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    pretokenize(Counted(rows), model.vq, folder, **options)
    return folder


def test_shards_are_a_source_like_others(
    written: Path, model: Janus, processor: Processor, geometry: Geometry
) -> None:
    source = Codes(written, fingerprint=fingerprint(model.vq), geometry=geometry)
    builder = Builder(processor=processor, guard=Guard(200), geometry=geometry, prompt_dropout=0)
    for workers in (0, 1):
        loader = Loader(
            Mixture([Part(source, 1)], seed=0), builder, rows=7, length=200, packed=False, workers=workers
        )
        batch = next(iter(loader))
        assert len(batch.targets) == 0
        expected = [outline(source.row(number), processor, geometry).codes for number in range(COUNT)]
        assert sorted(batch.codes.tolist()) == sorted(
            codes.tolist() for codes in expected if codes is not None
        )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@torch.no_grad()
def test_codes_are_the_tokenizers(
    written: Path, model: Janus, rows: list[dict[str, Any]], processor: Processor, geometry: Geometry
) -> None:
    source = Codes(written, fingerprint=fingerprint(model.vq), geometry=geometry)
    assert source.size == COUNT
    for number, raw in enumerate(rows):
        row = source.row(number)
        assert isinstance(row, Drawing)
        assert row.prompt == raw["prompt"]
        assert row.picture is None
        document = outline(row, processor, geometry)
        assert document.codes is not None
        # Pictures were tokenized in twos, within their shard: alone, convolutions round otherwise.
        batch = next(batch for batch in ([0, 1], [2], [3, 4], [5], [6]) if number in batch)
        targets = [picture_target(rows[each]["image"], processor, geometry.size) for each in batch]
        codes = model.vq.encode(torch.stack(targets)).flatten(1)[batch.index(number)]
        assert torch.equal(document.codes, codes)
    names = [f"{shard:05}.{ending}" for shard in range(3) for ending in ("jsonl", "safetensors")]
    assert sorted(contents(written)) == sorted([*names, "manifest.json"])


@pytest.mark.parametrize("stops", [[0], [2, 4], [3, 1, 1], [6, 6], [5, 6, 3]], ids=str)
def test_a_run_that_was_stopped_goes_on(
    tmp_path: Path,
    model: Janus,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    written: Path,
    stops: list[int],
) -> None:
    done: dict[str, int] = {}
    for stop in [*stops, None]:
        table = Counted(rows, stop)
        with contextlib.suppress(KeyboardInterrupt):
            pretokenize(table, model.vq, tmp_path, **options)
        assert len(set(table.read)) == len(table.read)
        # A shard that was whole is looked at, to see that it still is of these rows, and not written again.
        found = {path.stem: path.stat().st_ino for path in tmp_path.glob("*.safetensors")}
        assert done.items() <= found.items()
        done = found
    assert set(done) == {"00000", "00001", "00002"}
    assert contents(tmp_path) == contents(written)


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_a_file_that_was_half_written_is_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Janus,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    written: Path,
    geometry: Geometry,
    call: int,
) -> None:
    """Killed between the writing of any file and its renaming."""
    calls: Iterator[int] = iter(range(100))
    rename = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if next(calls) == call:
            path.write_bytes(path.read_bytes()[:-1])
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        pretokenize(Counted(rows), model.vq, tmp_path, **options)
    with pytest.raises((ValueError, FileNotFoundError), match=r"lacks|does not exist"):
        Codes(tmp_path, fingerprint=fingerprint(model.vq), geometry=geometry)
    pretokenize(Counted(rows), model.vq, tmp_path, **options)
    assert contents(tmp_path) == contents(written)


def test_ranks_write_the_same_folder(
    tmp_path: Path, model: Janus, rows: list[dict[str, Any]], options: dict[str, Any], written: Path
) -> None:
    tables = [Counted(rows), Counted(rows)]
    for rank, table in enumerate(tables):
        pretokenize(table, model.vq, tmp_path, **options, rank=rank, ranks=2)
    assert [table.read for table in tables] == [[0, 1, 2, 6], [3, 4, 5]]
    assert contents(tmp_path) == contents(written)


def test_a_fingerprint_is_of_what_encodes(model: Janus) -> None:
    own = fingerprint(model.vq)
    assert own == fingerprint(copy.deepcopy(model.vq))
    for name, same in (
        ("encoder.conv_in.bias", False),
        ("quant_conv.weight", False),
        ("codebook", False),
        ("decoder.conv_in.bias", True),
        ("post_quant_conv.bias", True),
    ):
        other = copy.deepcopy(model.vq)
        with torch.no_grad():
            other.get_parameter(name).view(-1)[0] += 1
        assert (fingerprint(other) == own) == same, name


def test_a_fingerprint_does_not_depend_on_the_dtype(model: Janus) -> None:
    exact = copy.deepcopy(model.vq).float()
    with torch.no_grad():
        exact.codebook *= 1 + 2**-12  # which 16 bits do not tell from 1
    rounded = copy.deepcopy(exact).bfloat16()
    assert fingerprint(exact) == fingerprint(rounded) == fingerprint(copy.deepcopy(rounded).float())
    assert len(fingerprint(rounded)) == 64


def test_another_tokenizer_is_refused(
    written: Path, model: Janus, geometry: Geometry, rows: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    other: VQ = copy.deepcopy(model.vq)
    with torch.no_grad():
        other.codebook[0] += 1
    with pytest.raises(
        ValueError, match=f"with the fingerprint {fingerprint(model.vq)}, and the model's is "
    ):
        Codes(written, fingerprint=fingerprint(other), geometry=geometry)
    with pytest.raises(ValueError, match="was begun with the fingerprint"):
        pretokenize(Counted(rows), other, written, **options)
    wider = Geometry(grid=9, factor=8, codebook=256)
    with pytest.raises(ValueError, match="was tokenized with the grid 8, and the model's is 9: tokenize"):
        Codes(written, fingerprint=fingerprint(model.vq), geometry=wider)


def test_other_rows_are_refused(
    written: Path, model: Janus, rows: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="was begun with the rows 7, not 6: give the same, or another"):
        pretokenize(Counted(rows[:6]), model.vq, written, **options)
    with pytest.raises(ValueError, match="was begun with the shard_rows 3, not 2"):
        pretokenize(Counted(rows), model.vq, written, **{**options, "shard_rows": 2})
    with pytest.raises(ValueError, match=r"^pictures:0 is not what .*00000\.safetensors was made of"):
        pretokenize(Counted(rows[::-1]), model.vq, written, **options)
    swapped = [rows[0], rows[2], rows[1], *rows[3:]]
    with pytest.raises(ValueError, match=r"^pictures:1 is not what .*00000\.safetensors was made of"):
        pretokenize(Counted(swapped), model.vq, written, **options)


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"text": "a"}, ValueError, "^pictures:0: no prompt with an image"),
        ({"prompt": "a", "codes": [1]}, ValueError, "^pictures:0: no prompt with an image"),
        (
            {"prompt": "a", "image": "absent.png"},
            FileNotFoundError,
            r"^pictures:0: absent\.png does not exist",
        ),
    ],
)
def test_rows_without_a_picture(
    tmp_path: Path, model: Janus, options: dict[str, Any], row: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        pretokenize(Counted([row]), model.vq, tmp_path, **options)


def test_endless_rows(tmp_path: Path, model: Janus, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="world is endless"):
        pretokenize(World(lambda random: {}, "world"), model.vq, tmp_path, **options)


def damage(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", None, "manifest.json does not exist: give a folder that janus pretokenize wrote"),
        ("manifest.json", b"{", "manifest.json is not JSON"),
        ("manifest.json", b"[]", "manifest.json is no manifest of codes"),
        ("00001.safetensors", None, "lacks 1 of 3 shards, the first 00001: run janus pretokenize to its end"),
        ("00001.safetensors", b"no", "00001.safetensors is damaged"),
        ("00001.jsonl", b"{}\n", "00001.safetensors is damaged .*3 x 64 codes for 1 prompts"),
        ("00001.jsonl", b"{}\n{}\n{}\n", "00001.safetensors is damaged .*KeyError"),
        ("00001.jsonl", b"1\n2\n3\n", "00001.safetensors is damaged .*TypeError"),
    ],
)
def test_damage(
    tmp_path: Path,
    written: Path,
    model: Janus,
    geometry: Geometry,
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    for file, data in contents(written).items():
        (tmp_path / file).write_bytes(data)
    damage(tmp_path, name, content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Codes(tmp_path, fingerprint=fingerprint(model.vq), geometry=geometry).row(4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["rows", "shard_rows", "grid"])
def test_manifests_without_numbers(tmp_path: Path, written: Path, key: str) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, key: "3"}))
    with pytest.raises(ValueError, match=f"{key} must be a whole number of at least [01], not '3'"):
        module._read_manifest(tmp_path)
