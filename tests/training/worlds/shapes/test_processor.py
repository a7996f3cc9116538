"""The world's tokenizer and processor files: read as released ones are, and the same for the same seed."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import janus
from janus.processing.chat import DEFAULT_SYSTEM_PROMPT
from janus.training.worlds import shapes
from janus.training.worlds.shapes.processor import GENERATION, SPECIAL, train_tokenizer, write_processor
from janus.weights.hub import SHAPES

SIZE = 768


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> janus.Processor:
    folder = tmp_path_factory.mktemp("processor")
    write_processor(folder, image_size=64, image_tokens=64, vocabulary=SIZE)
    return janus.Processor.from_pretrained(folder)


def test_it_fills_its_vocabulary(processor: janus.Processor) -> None:
    assert processor.tokenizer.largest_id == SIZE - 1
    assert processor.config.image_size == 64
    assert processor.config.num_image_tokens == 64


def test_it_is_that_of_the_model_that_is_shipped(processor: janus.Processor) -> None:
    """So that a recipe's model of this world may begin with what that one sees and speaks with."""
    ours, shipped = (
        json.loads(files["tokenizer.json"]) for files in (processor.files, janus.load(SHAPES).processor.files)
    )
    assert ours == shipped


def test_it_speaks_as_janus_pro_does(processor: janus.Processor) -> None:
    text = processor.format([{"role": "user", "content": "a red circle"}])
    assert text == f"{DEFAULT_SYSTEM_PROMPT}\n\n<|User|>: a red circle\n\n<|Assistant|>:"


def test_a_flows_pictures_begin_with_a_token_of_their_own(processor: janus.Processor, tmp_path: Path) -> None:
    """And so the model that sees them has an embedding for where seeing begins."""
    write_processor(tmp_path, image_size=64, image_tokens=64, vocabulary=SIZE, flow=True)
    flow = janus.Processor.from_pretrained(tmp_path)
    assert flow.drawing_tag == GENERATION
    assert flow.draw_prompt("a red circle")[-1] == flow.tokenizer.id(GENERATION)
    assert flow.tokenizer.largest_id == SIZE - 1
    marks = (*SPECIAL, *shapes.COLORS, *shapes.SHAPES)
    assert [flow.tokenizer.encode(mark) for mark in marks] == [
        processor.tokenizer.encode(mark) for mark in marks
    ]
    assert flow.config.marks_start
    message = {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (64, 64))}]}
    assert int(flow([message]).image_mask.sum()) == 64 + 1
    assert flow.roles == ("<|User|>", "<|Assistant|>")


def test_words_of_the_world_are_tokens(processor: janus.Processor) -> None:
    """In the middle of a sentence, where each has a space before it."""
    start = len(processor.tokenizer.encode("a"))
    for word in (*shapes.COLORS, *shapes.SHAPES, "left", "right", "above", "below", "two", "four"):
        assert len(processor.tokenizer.encode(f"a {word}")) == start + 1, word
    assert len(processor.tokenizer.encode(DEFAULT_SYSTEM_PROMPT)) <= len(DEFAULT_SYSTEM_PROMPT.split()) + 4


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=100)
def test_any_text_comes_back(processor: janus.Processor, text: str) -> None:
    ids = [each for each in processor.tokenizer.encode(text) if each != processor.tokenizer.bos_id]
    assert processor.tokenizer.decode(ids) == text


def test_the_same_seed_gives_the_same_tokenizer() -> None:
    first, second = (train_tokenizer(400, 3, sentences=300).to_str() for _ in range(2))
    assert first == second
    assert train_tokenizer(400, 4, sentences=300).to_str() != first


def test_a_vocabulary_without_room_raises() -> None:
    least = 256 + len(SPECIAL)
    with pytest.raises(ValueError, match=f"of {least - 1} tokens has no room .* give {least}"):
        train_tokenizer(least - 1)
