"""Tar shards: samples by name, pictures by ending, and damage named with shard and sample."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from janus.training.data.rows import Conversation, Drawing, PlaceholderMismatch, Text
from janus.training.data.shards import TarShards


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(file, "png")
    return file.getvalue()


def write(path: Path, files: dict[str, Any], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            if not isinstance(content, bytes):
                content = (content if isinstance(content, str) else json.dumps(content)).encode()
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def shade(picture: Image.Image) -> int:
    return picture.convert("RGB").getpixel((0, 0))[0]  # type: ignore[index]


def test_samples_of_every_kind(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "<image> <image>"}, {"role": "assistant", "content": "Two."}]
    one = write(
        tmp_path / "0.tar",
        {
            "a/1.json": {"messages": asked},
            "a/1.1.png": png(11),
            "a/1.0.png": png(10),
            "a/2.txt": " a red one\n",
            "a/2.jpg": png(20),
        },
    )
    two = write(
        tmp_path / "1.tar",
        {
            "3.json": {"messages": asked, "images": ["x.png", "3.y.png"]},
            "3.y.png": png(31),
            "3.x.png": png(30),
            "4.json": {"prompt": "codes", "codes": [1, 2]},
            "5.json": {"prompt": "named", "image": "own.png"},
            "5.own.png": png(50),
            "6.json": {"prompt": "unnamed"},
            "6.png": png(60),
            "7.json": {"text": "words"},
        },
    )
    shards = TarShards([one, two])
    assert shards.size == 7
    rows = [shards.row(index) for index in range(7)]
    assert [row.where for row in rows][:3] == [f"{one}:a/1", f"{one}:a/2", f"{two}:3"]
    for row, shades in ((rows[0], [10, 11]), (rows[2], [30, 31])):
        assert isinstance(row, Conversation)
        assert [shade(part["image"]) for part in row.messages[0]["content"]] == shades
    assert rows[3] == Drawing("codes", codes=[1, 2])
    for row, prompt, value in ((rows[1], "a red one", 20), (rows[4], "named", 50), (rows[5], "unnamed", 60)):
        assert isinstance(row, Drawing)
        assert row.prompt == prompt
        assert shade(row.picture) == value
    assert rows[6] == Text("words")


names = st.text(st.sampled_from("abc12"), min_size=1, max_size=3)


@given(
    samples=st.dictionaries(names, st.text(max_size=20).filter(str.strip), max_size=8), cut=st.integers(1, 3)
)
def test_every_sample_is_found(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[str, str], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    parts = [list(samples.items())[start::cut] for start in range(cut)]
    paths = [
        write(folder / f"{number}.tar", {f"{key}.json": {"text": text} for key, text in part})
        for number, part in enumerate(parts)
    ]
    shards = TarShards(paths)
    assert [shards.row(index) for index in range(len(samples))] == [
        Text(text) for p in parts for _, text in p
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.json": "{"}, r"0\.tar:1\.json is not JSON"),
        ({"1.json": b"\xff"}, r"0\.tar:1\.json is not JSON"),
        ({"1.json": []}, "0.tar:1: the row is list"),
        ({"1.png": png(1)}, "0.tar:1 has the files png: give a .json, or a .txt and one picture"),
        ({"1.txt": "a"}, "0.tar:1 has the files txt: give a .json"),
        ({"1.txt": "a", "1.a.png": png(1), "1.b.png": png(2)}, "0.tar:1 has the files a.png, b.png, txt"),
        ({"1.txt": b"\xff", "1.png": png(1)}, r"0\.tar:1\.txt is not UTF-8"),
        ({"1.txt": "a", "1.png": b"no"}, r"0\.tar:1\.png is not a picture"),
        ({"1.json": {"prompt": "a", "image": "b.png"}}, "0.tar:1 has no file 'b.png': name one of json"),
        ({"1.json": {"prompt": "a"}}, "0.tar:1: the prompt needs either image or codes"),
    ],
)
def test_malformed_samples(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    shards = TarShards([write(tmp_path / "0.tar", files)])
    with pytest.raises(ValueError, match=message) as caught:
        shards.row(0)
    assert "\n" not in str(caught.value)


def test_pictures_without_places(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}]
    shards = TarShards([write(tmp_path / "0.tar", {"1.json": {"messages": messages}, "1.png": png(1)})])
    with pytest.raises(PlaceholderMismatch, match=r"0\.tar:1: 0 placeholders and 1 images"):
        shards.row(0)


def test_files_that_are_no_shards(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.tar does not exist"):
        TarShards([tmp_path / "absent.tar"])
    packed = write(tmp_path / "a.tar.gz", {"1.json": {"text": "a"}}, "w:gz")
    (tmp_path / "text.tar").write_text("nothing of the kind")
    for path in (packed, tmp_path / "text.tar"):
        with pytest.raises(ValueError, match="is no whole, uncompressed tar file"):
            TarShards([path])


def test_a_shard_that_was_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", {"1.json": {"text": "a"}, "2.json": {"text": "b" * 5000}})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"0\.tar (ends inside the sample 2|is no whole|is damaged or cut)"):
        TarShards([path])


@pytest.mark.parametrize(
    "damage", ["a byte of a header", "cut between samples", "zeros within", "two in one"]
)
def test_damage_that_looks_like_the_end(tmp_path: Path, damage: str) -> None:
    """What `tarfile` takes for the end of a shard, with all samples behind it lost."""
    path = write(tmp_path / "0.tar", {f"{number}.json": {"text": "a"} for number in range(6)})
    content = path.read_bytes()
    assert TarShards([path]).size == 6
    third = 3 * 2 * 512  # a header and the content of each
    damaged = {
        "a byte of a header": content[: third + 10] + b"~" + content[third + 11 :],
        "cut between samples": content[:third],
        "zeros within": content[:third] + bytes(1024) + content[third + 1024 :],
        "two in one": content + content,
    }[damage]
    path.write_bytes(damaged)
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512 if damage == "two in one" else third
    with pytest.raises(
        ValueError, match=rf"0\.tar is damaged or cut at byte {end} of {len(damaged)}: write or"
    ):
        TarShards([path])
