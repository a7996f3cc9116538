"""JanusFlow's roles, tags and places of pictures come from its files, and are the original's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from janus.processing import Processor
from janus.weights.processor_config import read_side_files

TAG = "<image_placeholder>"
PICTURE = Image.new("RGB", (8, 6), (10, 200, 30))


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    return data / "janusflow" / "checkpoint"


@pytest.fixture(scope="module")
def processor(folder: Path) -> Processor:
    return Processor.from_pretrained(folder)


def changed(folder: Path, **values: Any) -> Processor:
    """The processor with other values in its file; None removes a key."""
    files = read_side_files(folder)
    stated = json.loads(files["processor_config.json"]) | values
    kept = {key: value for key, value in stated.items() if value is not None}
    return Processor(files | {"processor_config.json": json.dumps(kept).encode()}, where=str(folder))


def test_what_the_files_state(processor: Processor, flow_facts: dict[str, Any]) -> None:
    facts = flow_facts["processor"]
    assert processor.roles == ("User", "Assistant")
    assert processor.config.image_generation_tag == "<｜begin▁of▁generation｜>"
    assert processor.image_start_id == facts["image_start_id"]
    assert processor.image_id == facts["image_id"]
    assert processor.image_end_id == facts["image_end_id"]
    assert processor.tokenizer.pad_id == facts["pad_id"]
    assert processor.config.num_image_tokens == facts["num_image_tokens"]


@pytest.mark.parametrize("name", ["und0", "und1", "und2", "und3"])
def test_batches_are_the_originals(
    name: str, processor: Processor, flow_golden: dict[str, Tensor], flow_facts: dict[str, Any]
) -> None:
    given = [
        [{key: message[key] for key in ("role", "content")} for message in conversation]
        for conversation in flow_facts["conversations"][name]
    ]
    count = sum(message["content"].count(TAG) for conversation in given for message in conversation)
    batch = processor(given, [PICTURE] * count)
    assert torch.equal(batch.input_ids, flow_golden[f"{name}.input_ids"])
    assert torch.equal(batch.attention_mask, flow_golden[f"{name}.attention_mask"].bool())
    assert torch.equal(batch.image_mask, flow_golden[f"{name}.images_seq_mask"].bool())
    assert [processor.format(conversation) for conversation in given] == flow_facts["sft_format"][name]


def test_pixels_are_the_originals(shared: Path, processor: Processor, flow_golden: dict[str, Tensor]) -> None:
    images = shared / "oracle" / "preprocess" / "images"
    pixels = [processor.image(images / f"{name}.png") for name in ("equation", "doge", "pie_chart")]
    assert torch.equal(torch.stack(pixels), flow_golden["vision.pixel_values"])


def test_drawing_prompt_ends_with_the_tag_of_generation(
    processor: Processor, flow_golden: dict[str, Tensor], flow_facts: dict[str, Any]
) -> None:
    start, end = "User: ", f"\n\nAssistant:{processor.config.image_generation_tag}"
    prompt = flow_facts["flow.prompt"]
    ids = processor.draw_prompt(prompt[len(start) : -len(end)])
    assert ids == flow_facts["flow.prompt_ids"]
    assert ids == flow_golden["flow.tokens"][0].tolist()
    assert start + prompt[len(start) : -len(end)] + end == prompt


@settings(max_examples=30)
@given(
    turns=st.lists(
        st.tuples(st.integers(0, 3), st.text("ab <image_beg>", max_size=12)), min_size=1, max_size=3
    )
)
def test_a_picture_begins_at_its_start_token(processor: Processor, turns: list[tuple[int, str]]) -> None:
    """Whatever is written around pictures, and however close they stand: 17 places of each are marked."""
    rows = [
        [{"role": "user", "content": [{"type": "image", "image": PICTURE}] * count + [text_part(text)]}]
        for count, text in turns
    ]
    batch = processor(rows)
    for (count, _), ids, mask in zip(turns, batch.input_ids, batch.image_mask, strict=True):
        expected = torch.zeros_like(mask)
        for start in (ids == processor.image_start_id).nonzero().flatten().tolist():
            assert ids[start + 1 : start + 17].eq(processor.image_id).all()
            assert ids[start + 17] == processor.image_end_id
            expected[start : start + 17] = True
        assert torch.equal(mask, expected)
        assert mask.sum() == 17 * count
    assert len(batch.pixels) == sum(count for count, _ in turns)


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_a_start_token_without_a_picture_is_no_place(processor: Processor) -> None:
    """In the released style a user's spelling of it is one; the original then asks for a picture."""
    batch = processor([{"role": "User", "content": "<image_beg> hm"}, {"role": "Assistant", "content": ""}])
    assert (batch.input_ids == processor.image_start_id).sum() == 1
    assert not batch.image_mask.any()


def test_files_without_a_generation_tag_are_janus(folder: Path) -> None:
    plain = changed(folder, image_gen_tag=None)
    assert plain([{"role": "User", "content": TAG}], PICTURE).image_mask.sum() == 16
    assert plain.draw_prompt("a cat")[-1] == plain.image_start_id


@pytest.mark.parametrize("tag", ["image_gen_tag", "image_start_tag", "image_end_tag", "image_tag"])
def test_tags_that_the_vocabulary_lacks_are_named(tag: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="has no token '<nothing>': use the checkpoint's own files"):
        changed(folder, **{tag: "<nothing>"})
