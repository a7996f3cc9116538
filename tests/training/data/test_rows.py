"""Rows: placeholders and pictures meet in order, and whatever is wrong is said in one line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from janus.processing.processor import Processor
from janus.training.data.rows import (
    Conversation,
    Drawing,
    PlaceholderMismatch,
    Text,
    beside,
    parse_row,
    picture_from_bytes,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "images", "prompt", "image", "codes", "text", "role", "content", "type"]
            ),
            inner | st.sampled_from(["user", "assistant", "image", "text"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


def image(name: Any) -> dict[str, Any]:
    return {"type": "image", "image": name}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize("tag", ["<image>", "<image_placeholder>"])
def test_placeholders_become_pictures_in_reading_order(tag: str) -> None:
    row = parse_row(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"{tag}\nand {tag} differ how?\n"},
                {"role": "assistant", "content": "In size."},
                {"role": "user", "content": [text(f"literally {tag}"), {"type": "image"}, image("own.png")]},
                {"role": "assistant", "content": "?"},
            ],
            "images": ["a.png", "b.png", "c.png"],
        },
        "f:1",
        beside(Path("d")),
    )
    a, b, c, own = (image(str(Path("d") / f"{name}.png")) for name in ("a", "b", "c", "own"))
    assert row == Conversation(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [a, text("and"), b, text("differ how?")]},
            {"role": "assistant", "content": "In size."},
            {"role": "user", "content": [text(f"literally {tag}"), c, own]},
            {"role": "assistant", "content": "?"},
        ]
    )
    assert row.where == "f:1"


def test_a_placeholder_is_formatted_as_released(processor: Processor) -> None:
    content = "<image_placeholder>\nWhat is it?"
    row = parse_row(
        {"messages": [{"role": "user", "content": content}], "images": ["x"]}, "f:1", lambda name: name
    )
    assert isinstance(row, Conversation)
    assert f": {content}\n\n" in processor.format(row.messages)


@given(
    pieces=st.lists(st.sampled_from(["<image>", "<image_placeholder>", "words", " ", "\n"]), max_size=8),
    images=st.integers(0, 5),
)
def test_places_and_pictures_must_agree(pieces: list[str], images: int) -> None:
    raw = {
        "messages": [{"role": "user", "content": "".join(pieces)}],
        "images": [f"{n}" for n in range(images)],
    }
    places = sum("image" in piece for piece in pieces)
    if places != images:
        with pytest.raises(PlaceholderMismatch, match=f"^f:7: {places} placeholders and {images} images: "):
            parse_row(raw, "f:7")
        return
    row = parse_row(raw, "f:7")
    assert isinstance(row, Conversation)
    content = row.messages[0]["content"]
    found = [part["image"] for part in content if part["type"] == "image"] if places else []
    assert found == raw["images"]


def test_drawings_and_texts() -> None:
    folder = Path("d")
    assert parse_row({"prompt": "a cat", "image": "x.png"}, "f:1", beside(folder)) == Drawing(
        "a cat", picture=str(folder / "x.png")
    )
    assert parse_row({"prompt": "a cat", "codes": [1], "id": 5}, "f:1") == Drawing("a cat", codes=[1])
    assert parse_row({"text": " once "}, "f:1") == Text(" once ")
    absolute = str(folder.absolute() / "x.png")
    for picture in (absolute, "data:image/png;base64,AA==", "https://example.org/x.png", None):
        assert beside(folder)(picture) == picture


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "the row is list: give an object"),
        ({"question": "a"}, r"the row has the keys \['question'\]: give exactly one of messages"),
        ({"prompt": "a", "text": "b"}, r"the row has the keys \['prompt', 'text'\]"),
        ({"prompt": ""}, "prompt is '': give a string that says something"),
        ({"prompt": 5, "image": "a"}, "prompt is 5"),
        ({"prompt": "a"}, "the prompt needs either image or codes"),
        ({"prompt": "a", "image": "b", "codes": [1]}, "the prompt needs either image or codes"),
        ({"text": ["a"]}, r"text is \['a'\]"),
        ({"messages": "hello"}, "messages is 'hello': give a list of objects"),
        ({"messages": ["hello"]}, r"messages is \['hello'\]: give a list of objects"),
        ({"messages": [], "images": "a.png"}, "images is 'a.png': give a list of paths"),
        ({"messages": [{"role": "gpt", "content": "a"}]}, "message 0: role is 'gpt': use one of user, "),
        ({"messages": [{"content": "a"}]}, "message 0: role is None"),
    ],
)
def test_malformed_rows(raw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^f:3: {message}") as caught:
        parse_row(raw, "f:3")
    assert "\n" not in str(caught.value)


@given(raw=JSON)
def test_any_json_is_a_row_or_one_line(raw: Any) -> None:
    error = None
    try:
        row = parse_row(raw, "f:3")
    except ValueError as caught:
        error = str(caught)
    if error is None:
        assert isinstance(row, Conversation | Text | Drawing)
    else:
        assert error.startswith("f:3: ")
        assert "\n" not in error


def test_pictures_from_bytes(data: Path) -> None:
    file = data / "preprocess" / "images" / "wide.png"
    with Image.open(file) as expected:
        assert picture_from_bytes(file.read_bytes(), "a").tobytes() == expected.tobytes()
    for content in (b"", b"not a picture", file.read_bytes()[:20]):
        with pytest.raises(ValueError, match=r"^a\.tar:x\.png is not a picture"):
            picture_from_bytes(content, "a.tar:x.png")
