"""Paths and patterns to sources, and the lines that a check rejected."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from janus.models.janus import Janus
from janus.processing.processor import Processor
from janus.training.data.open import open_source
from janus.training.data.outline import Geometry
from janus.training.data.pretokenize import Codes, pretokenize
from janus.training.data.rows import Text
from janus.training.data.shards import TarShards
from janus.training.data.sources import Joined, JsonLines, Table
from janus.training.prepare import Purpose, check_file


def write(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_lines_alone_and_together(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", "a", "b")
    write(tmp_path / "2.jsonl")
    write(tmp_path / "3.jsonl", "c")
    alone = open_source(one)
    assert isinstance(alone, JsonLines)
    assert (alone.size, alone.row(1, 0)) == (2, Text("b"))
    joined = open_source(str(tmp_path / "*.jsonl"))
    assert isinstance(joined, Joined)
    assert [joined.row(index, 0) for index in range(3)] == [Text("a"), Text("b"), Text("c")]
    assert joined.size == 3
    assert joined.row(2, 0).where == f"{tmp_path}/3.jsonl:1"


def test_rejected_lines_are_passed_over(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\nbroken\n{"text": "b"}\n')
    assert check_file(path, Purpose.of(str(folder), None), skip_bad=True) == 0
    for name in (str(path), str(tmp_path / "*.jsonl")):
        source = open_source(name)
        assert [source.row(index, 0) for index in range(source.size or 0)] == [Text("a"), Text("b")]


def test_shards(tmp_path: Path) -> None:
    line = tmp_path / "1.json"
    line.write_text('{"text": "a"}')
    for name in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(line, "1.json")
    source = open_source(str(tmp_path / "*.tar"))
    assert isinstance(source, TarShards)
    assert source.size == 2
    with pytest.raises(ValueError, match="is tar shards and other files: give a pattern for each"):
        open_source(str(tmp_path / "*"))


def test_codes(tmp_path: Path, model: Janus, processor: Processor, geometry: Geometry, data: Path) -> None:
    picture = str(data / "preprocess" / "images" / "wide.png")
    rows: list[Any] = [{"prompt": "a", "image": picture}]
    pretokenize(Table(rows, "one"), model.vq, tmp_path, processor=processor, geometry=geometry)
    source = open_source(str(tmp_path), vq=model.vq, geometry=geometry)
    assert isinstance(source, Codes)
    assert source.size == 1
    with pytest.raises(ValueError, match="there is no tokenizer to compare them with: name a model"):
        open_source(str(tmp_path))


def test_a_path_with_marks_of_a_pattern_is_itself_where_it_exists(tmp_path: Path) -> None:
    for name, text in (("run[1]", "own"), ("run1", "other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(json.dumps({"text": text}))
    assert open_source(str(tmp_path / "run[1]" / "a.jsonl")).row(0) == Text("own")
    assert open_source(str(tmp_path / "run[!2]" / "a.jsonl")).row(0) == Text("other")


def test_paths_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file fits .*\*\.jsonl: give the path of"):
        open_source(str(tmp_path / "*.jsonl"))
    with pytest.raises(FileNotFoundError, match="absent does not exist: give a file"):
        open_source(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="is a folder: give a file"):
        open_source(str(tmp_path))
