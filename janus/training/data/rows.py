"""One line of training data, checked: a conversation, a plain text, or a prompt with what it should draw."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from janus.checks import one_line
from janus.processing.chat import OPENAI_ROLES
from janus.weights.processor_config import IMAGE_TAG

# How files mark the place of a picture in a message: the released placeholder, and the usual short one.
PLACEHOLDERS = (IMAGE_TAG, "<image>")
KINDS = ("messages", "prompt", "text")


class PlaceholderMismatch(ValueError):
    """A conversation has more or fewer places for pictures than pictures."""


@dataclass(frozen=True)
class Conversation:
    """Messages of user, assistant and system; pictures are parts, `{"type": "image", "image": picture}`."""

    messages: Sequence[Mapping[str, Any]]
    where: str = field(default="a conversation", compare=False)


@dataclass(frozen=True)
class Text:
    """A text to be learned as a whole, in no chat format."""

    text: str
    where: str = field(default="a text", compare=False)


class Meaning(Protocol):
    """What is known of a picture and its caption, where a world has made both."""

    def is_also(self, other: Any) -> bool:
        """Whether this picture is also one of the other's caption."""
        ...


@dataclass(frozen=True)
class Drawing:
    """A prompt, and the picture or the codes (T,) or (grid, grid) that it should become.

    `meaning` is that of a picture which a world has made; no file states it.
    """

    prompt: str
    picture: Any = None
    codes: Any = None
    meaning: Meaning | None = field(default=None, compare=False)
    where: str = field(default="a drawing", compare=False)


Row = Conversation | Text | Drawing
Resolve = Callable[[Any], Any]


def parse_row(raw: Any, where: str, resolve: Resolve = lambda picture: picture) -> Row:
    """The row that a JSON object states; `resolve` turns what names a picture into what `load_picture` takes.

    Raises ValueError, and PlaceholderMismatch, beginning with `where`. What a conversation's roles and parts
    must be is checked where it is formatted.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: the row is {type(raw).__name__}: give an object")
    kinds = [kind for kind in KINDS if raw.get(kind) is not None]
    if len(kinds) != 1:
        raise ValueError(
            f"{where}: the row has the keys {sorted(map(str, raw))}: give exactly one of "
            "messages (with images), prompt (with image or codes) and text"
        )
    if kinds == ["messages"]:
        return Conversation(_messages(raw, where, resolve), where)
    text = raw[kinds[0]]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: {kinds[0]} is {text!r}: give a string that says something")
    if kinds == ["text"]:
        return Text(text, where)
    picture, codes = raw.get("image"), raw.get("codes")
    if (picture is None) == (codes is None):
        raise ValueError(f"{where}: the prompt needs either image or codes: give one of them")
    return Drawing(text, None if picture is None else resolve(picture), codes, where=where)


def beside(folder: Path) -> Resolve:
    """Reads relative paths of pictures as relative to a folder; leaves alone what is no path."""

    def resolve(picture: Any) -> Any:
        if isinstance(picture, str) and not picture.startswith("data:") and "://" not in picture:
            return str(folder / picture)
        return picture

    return resolve


def located(error: ValueError | FileNotFoundError, where: str) -> ValueError | FileNotFoundError:
    """An error about a row's picture that says which row, for whoever reads it without the row at hand."""
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    return kind(f"{where}: {error}")


def picture_from_bytes(data: bytes, name: str) -> Image.Image:
    """A picture file's content, opened but not decoded. Raises ValueError for what is no picture."""
    try:
        return Image.open(io.BytesIO(data))
    # Any class of exception: Pillow raises whatever a damaged file makes it stumble over.
    except Exception as error:
        raise ValueError(f"{name} is not a picture ({one_line(error)}): check the file") from error


def _messages(raw: Mapping[str, Any], where: str, resolve: Resolve) -> list[Mapping[str, Any]]:
    messages, images = raw["messages"], raw.get("images")
    if not isinstance(messages, list | tuple) or not all(isinstance(each, Mapping) for each in messages):
        raise ValueError(
            f"{where}: messages is {messages!r:.60}: give a list of objects with role and content"
        )
    if not isinstance(images, list | tuple | type(None)):
        raise ValueError(f"{where}: images is {images!r:.60}: give a list of paths, in reading order")
    for index, message in enumerate(messages):
        if message.get("role") not in OPENAI_ROLES:
            raise ValueError(
                f"{where}: message {index}: role is {message.get('role')!r}: "
                f"use one of {', '.join(OPENAI_ROLES)}"
            )
    contents = [_split(message.get("content")) for message in messages]
    places = sum(_is_place(part) for content in contents if _is_parts(content) for part in content)
    given = list(images or [])
    if places != len(given):
        raise PlaceholderMismatch(
            f"{where}: {places} placeholders and {len(given)} images: "
            f"write one {PLACEHOLDERS[1]} for each image"
        )
    rest = iter(given)
    filled = [
        [_filled(part, rest, resolve) for part in content] if _is_parts(content) else content
        for content in contents
    ]
    return [{**message, "content": content} for message, content in zip(messages, filled, strict=True)]


def _split(content: Any) -> Any:
    """A string with placeholders as parts; white space around a placeholder is the template's to write."""
    if not isinstance(content, str):
        return content
    stretches = [content]
    for tag in PLACEHOLDERS:
        stretches = [each for stretch in stretches for each in stretch.split(tag)]
    if len(stretches) == 1:
        return content
    parts: list[Mapping[str, Any]] = []
    for number, stretch in enumerate(stretches):
        if number:
            parts.append({"type": "image"})
        if stretch.strip():
            parts.append({"type": "text", "text": stretch.strip()})
    return parts


def _is_parts(content: Any) -> bool:
    return isinstance(content, list | tuple)


def _is_place(part: Any) -> bool:
    """Whether a part is a picture's place that names no picture itself."""
    return _is_picture(part) and part.get("image") is None


def _is_picture(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"


def _filled(part: Any, rest: Iterator[Any], resolve: Resolve) -> Any:
    if not _is_picture(part):
        return part
    return {**part, "image": resolve(next(rest) if _is_place(part) else part["image"])}
