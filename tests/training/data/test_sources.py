"""Sources: lines, tables and worlds give the same rows; what is wrong is named with its file and line."""

import base64
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from janus.processing.image import load_picture
from janus.training.data.rows import Conversation, Drawing, Text
from janus.training.data.sources import JsonLines, Table, World, hugging_face


@pytest.fixture
def picture(data: Path) -> Path:
    return data / "preprocess" / "images" / "wide.png"


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_lines(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "<image> Hm?"}, {"role": "assistant", "content": "A cat."}]
    source = JsonLines(
        write(
            tmp_path / "a.jsonl",
            {"messages": messages, "images": ["cats/a.png"]},
            "",
            {"prompt": "ein Kätzchen 🐈", "image": "b.png"},
            "   ",
            {"text": "once"},
            {"prompt": "two", "codes": [1, 2]},
        )
    )
    assert source.size == 4
    first = source.row(0)
    assert isinstance(first, Conversation)
    assert first.messages[0]["content"][0] == {"type": "image", "image": str(tmp_path / "cats/a.png")}
    assert source.row(1) == Drawing("ein Kätzchen 🐈", picture=str(tmp_path / "b.png"))
    assert source.row(2) == Text("once")
    assert source.row(3) == Drawing("two", codes=[1, 2])
    assert [source.row(index).where for index in range(4)] == [
        f"{tmp_path}/a.jsonl:{line}" for line in (1, 3, 5, 6)
    ]


@given(
    lines=st.lists(st.one_of(st.just(""), st.text(min_size=1).filter(str.strip)), max_size=20), data=st.data()
)
def test_lines_are_found_again(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    rejects = data.draw(st.sets(st.integers(1, 20)))
    write(path, *[json.dumps({"text": line}, ensure_ascii=False) if line else "" for line in lines])
    source = JsonLines(path, rejects)
    expected = [
        (line, number) for number, line in enumerate(lines, start=1) if line and number not in rejects
    ]
    assert source.size == len(expected)
    for index in data.draw(st.permutations(range(len(expected)))):
        line, number = expected[index]
        assert source.row(index) == Text(line)
        assert source.where(index) == f"{path}:{number}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "'{' is not JSON"),
        ("[" * 100_000, r"is not JSON \(RecursionError"),
        ("[1]", "the row is list: give an object"),
        ('{"prompt": "a"}', "the prompt needs either image or codes"),
        ('{"messages": [{"role": "user", "content": "<image>"}]}', "1 placeholders and 0 images"),
        ('{"messages": [{"role": "user", "content": "a"}], "images": ["a"]}', "0 placeholders and 1 images"),
    ],
)
def test_malformed_lines(tmp_path: Path, line: str, message: str) -> None:
    source = JsonLines(write(tmp_path / "a.jsonl", {"text": "fine"}, line))
    assert source.row(0) == Text("fine")
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{message}") as caught:
        source.row(1)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xff\xfe"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .* is not JSON \(UnicodeDecodeError"):
        JsonLines(path).row(0)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl does not exist: give a file"):
        JsonLines(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="is a folder: give a file with one JSON object a line"):
        JsonLines(tmp_path)
    assert JsonLines(write(tmp_path / "empty.jsonl")).size == 0


class Dataset(list[Any]):
    """What `Table` uses of a Hugging Face dataset."""

    column_names = ("caption", "picture", "image")


def test_tables(picture: Path) -> None:
    with Image.open(picture) as opened:
        decoded = opened.copy()
    raw = {"bytes": picture.read_bytes(), "path": "wide.png"}
    by_path = {"bytes": None, "path": str(picture)}
    rows = [{"caption": "a", "picture": each, "image": "another"} for each in (decoded, raw, by_path)]
    table = Table(Dataset(rows), "set[train]", {"prompt": "caption", "image": "picture"})
    assert table.size == 3
    first, second, third = (table.row(index) for index in range(3))
    assert first == Drawing("a", picture=decoded)
    assert first.where == "set[train]:0"
    assert isinstance(second, Drawing)
    assert second.picture.tobytes() == decoded.tobytes()
    assert third == Drawing("a", picture=str(picture))
    # Columns without a value are absent.
    bare = Table([{"messages": None, "text": "a", "images": []}], "set")
    assert bare.row(0) == Text("a")


def test_of_a_row_for_several_tasks_the_source_s_counts() -> None:
    row = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "prompt": "a red circle",
        "codes": [1, 2],
        "text": "plain",
    }
    found = {task: Table([row], "set", task=task).row(0) for task in ("understanding", "drawing", "text")}
    assert [type(each) for each in found.values()] == [Conversation, Drawing, Text]
    assert found["text"] == Text("plain")
    # A text may be a conversation, where there is no other.
    assert isinstance(Table([{"messages": row["messages"]}], "set", task="text").row(0), Conversation)
    with pytest.raises(ValueError, match="give exactly one of messages"):
        Table([row], "set").row(0)


class Damaged:
    """A dataset whose rows cannot be decoded."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise OSError("image file is truncated")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "image": {"bytes": b"no", "path": None}}], "^set:0: a picture is not a picture"),
        (
            [{"prompt": "a", "image": {"bytes": None, "path": None}}],
            "^set:0: a picture has neither bytes nor a path",
        ),
        (["a"], "^set:0: the row is str"),
        (Damaged(), r"^set:0: the row cannot be read \(OSError: image file is truncated\)"),
    ],
)
def test_malformed_tables(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Table(rows, "set").row(0)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="set has no column 'label': name one of caption, picture, image"):
        Table(Dataset(), "set", {"text": "label"})


def test_hugging_face_is_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="the package datasets is missing: pip install datasets"):
        hugging_face("somebody/something")

    def load_dataset(path: str, *, split: str, streaming: bool) -> list[Any]:
        assert (path, split, streaming) == ("somebody/something", "test", False)
        return [{"text": "from the hub"}]

    def load_from_disk(path: str) -> Any:
        saved = [{"text": "from disk"}]
        return saved if (Path(path) / "state.json").exists() else {"train": saved}

    module = types.SimpleNamespace(load_dataset=load_dataset, load_from_disk=load_from_disk)
    monkeypatch.setitem(sys.modules, "datasets", module)  # type: ignore[arg-type]
    table = hugging_face("somebody/something", split="test", streaming=False)
    assert table.row(0) == Text("from the hub")
    assert table.name == "somebody/something[test]"
    (tmp_path / "dataset_dict.json").touch()
    assert hugging_face(str(tmp_path)).row(0) == Text("from disk")
    with pytest.raises(
        ValueError, match=r"\[test\] cannot be loaded .* \(KeyError: 'test'\): check its name"
    ):
        hugging_face(str(tmp_path), split="test")
    (tmp_path / "dataset_dict.json").rename(tmp_path / "state.json")
    assert hugging_face(str(tmp_path)).row(0) == Text("from disk")
    with pytest.raises(ValueError, match=r"\[test\] cannot be .* holds the split train alone: give that one"):
        hugging_face(str(tmp_path), split="test")


def test_datasets_own_rows(picture: Path, tmp_path: Path) -> None:
    """Where the package is installed: a column of pictures, saved to disk, and files that it reads itself."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"caption": datasets.Value("string"), "image": datasets.Image()})
    rows = {"caption": ["a", "b"], "image": [str(picture), str(picture)]}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "saved")
    table = hugging_face(str(tmp_path / "saved"), columns={"prompt": "caption"})
    assert table.size == 2
    row = table.row(1)
    assert isinstance(row, Drawing)
    assert row.prompt == "b"
    assert np.array_equal(np.asarray(load_picture(row.picture)), np.asarray(load_picture(picture)))
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "train.jsonl", {"text": "plain"})
    assert hugging_face(str(tmp_path / "files"), cache_dir=str(tmp_path / "cache")).row(0) == Text("plain")
    with pytest.raises(ValueError, match=r"\[test\] cannot be loaded as a Hugging Face dataset"):
        hugging_face(str(tmp_path / "files"), split="test", cache_dir=str(tmp_path / "cache"))


def test_a_picture_in_a_line(picture: Path, tmp_path: Path) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    row = JsonLines(write(tmp_path / "a.jsonl", {"prompt": "a", "image": uri})).row(0)
    assert row == Drawing("a", picture=uri)


def test_a_world_is_its_seeds() -> None:
    def make(random: np.random.Generator) -> dict[str, Any]:
        return {"text": f"number {random.integers(10**9)}"}

    world = World(make, "numbers")
    assert world.size is None
    assert world.row(0, 5) == world.row(1, 5)
    assert len({str(world.row(0, seed)) for seed in range(50)}) == 50
    with pytest.raises(ValueError, match=r"^nothing\[seed 7\]: the row has the keys \[\]"):
        World(lambda random: {}, "nothing").row(3, 7)
