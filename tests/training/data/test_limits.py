"""The length guard: counts without pictures, and cuts that leave every picture and its place whole."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from janus.processing.processor import Processor
from janus.training.data.example import decode
from janus.training.data.limits import Guard, count_tokens
from janus.training.data.outline import IGNORE, Geometry, Outline, conversation_outline, outline
from janus.training.data.rows import Conversation, Drawing, Row, Text

PICTURE = Image.new("RGB", (8, 6), (10, 200, 30))
words = st.lists(st.sampled_from(["a", "red", "circle,", "<image_placeholder>"]), max_size=30).map(" ".join)
part = st.one_of(
    words.map(lambda text: {"type": "text", "text": text}), st.just({"type": "image", "image": PICTURE})
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(st.lists(part, max_size=3))})
        messages.append({"role": "assistant", "content": "yes " + draw(words)})
    return messages


def pictures_in(document: Outline, processor: Processor) -> int:
    """How many whole pictures, with both tags, the ids hold; no part of one may be left over."""
    start, image, end = processor.image_start_id, processor.image_id, processor.image_end_id
    whole = [start, *[image] * processor.config.num_image_tokens, end]
    ids = document.ids.tolist()
    places = [at for at in range(len(ids)) if ids[at : at + len(whole)] == whole]
    assert ids.count(image) == len(places) * (len(whole) - 2)
    assert ids.count(start) == ids.count(end) == len(places)
    return len(places)


@given(messages=conversations(), limit=st.integers(1, 250))
@settings(max_examples=80)
def test_a_cut_never_touches_a_picture(
    processor: Processor, messages: list[dict[str, Any]], limit: int
) -> None:
    whole = conversation_outline(processor, messages, system="")
    short = Guard(limit, "truncate_text")(whole, "f:1")
    if len(whole) <= limit:
        assert short is whole
        return
    assert Guard(limit, "drop")(whole, "f:1") is None
    with pytest.raises(ValueError, match=f"^f:1: {len(whole)} tokens, over the limit of {limit}: shorten it"):
        Guard(limit, "error")(whole, "f:1")
    beyond = whole.image_mask.nonzero()
    if short is None:
        # Either a picture, its end tag included, reaches over the limit, or nothing would be left to learn.
        reaches = len(beyond) > 0 and int(beyond[-1]) + 2 > limit
        assert reaches or (whole.labels[: limit - 1] == IGNORE).all()
        return
    assert len(short) == limit
    assert torch.equal(short.ids, whole.ids[:limit])
    assert torch.equal(short.labels[:-1], whole.labels[: limit - 1])
    assert short.labels[-1] == IGNORE
    assert short.pictures == whole.pictures
    assert pictures_in(short, processor) == pictures_in(whole, processor) == len(whole.pictures)
    assert len(decode(short, processor).pixels) * processor.config.num_image_tokens == short.image_mask.sum()


def test_every_length_of_one_conversation(processor: Processor) -> None:
    picture = {"type": "image", "image": PICTURE}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [picture, picture]},
        {"role": "assistant", "content": "red red red"},
    ]
    whole = conversation_outline(processor, messages, system="")
    end = len(whole) - whole.ids.tolist()[::-1].index(processor.image_end_id)
    for limit in range(1, len(whole)):
        short = Guard(limit, "truncate_text")(whole, "f:1")
        # There is something to learn before the pictures: they alone forbid the shorter cuts.
        assert (short is None) == (limit < end)
        assert short is None or pictures_in(short, processor) == 2


@pytest.mark.parametrize("policy", ["drop", "truncate_text"])
def test_a_drawing_is_never_cut(processor: Processor, geometry: Geometry, policy: Any) -> None:
    document = outline(Drawing("a red circle", codes=[0] * 64), processor, geometry)
    assert Guard(len(document), policy)(document, "f:1") is document
    assert Guard(len(document) - 1, policy)(document, "f:1") is None


@given(messages=conversations())
@settings(max_examples=30)
def test_counts_need_no_picture(processor: Processor, messages: list[dict[str, Any]]) -> None:
    unreadable = [
        {
            **message,
            "content": [
                {"type": "image", "image": "absent.png"} if part["type"] == "image" else part
                for part in message["content"]
            ]
            if isinstance(message["content"], list)
            else message["content"],
        }
        for message in messages
    ]
    assert count_tokens(Conversation(unreadable), processor) == processor(messages).input_ids.shape[1]


@pytest.mark.parametrize(
    ("row", "length"),
    [
        (Text("a"), 3),
        (Drawing("a", picture="absent.png"), None),
    ],
)
def test_counts_of_other_rows(processor: Processor, geometry: Geometry, row: Row, length: int | None) -> None:
    expected = length or len(processor.draw_prompt("a")) + 63
    assert count_tokens(row, processor, geometry) == expected


def test_a_prompt_beyond_the_window_is_the_guards(processor: Processor, geometry: Geometry) -> None:
    row = Drawing("circle " * 20000, codes=[0] * 64, where="f:9")
    assert Guard(4096, "drop")(outline(row, processor, geometry), row.where) is None


def test_limits_and_policies_that_are_none() -> None:
    with pytest.raises(
        ValueError, match="the policy for long documents is 'cut': use one of drop, error, tru"
    ):
        Guard(10, "cut")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the limit of tokens must be a whole number of at least 1, not 0"):
        Guard(0)
