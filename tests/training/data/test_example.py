"""Examples against inference: the same ids, pictures and logits; labels where answers and codes are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from janus.inference.draw import draw_steps
from janus.inference.draw_batch import Picture, unconditional
from janus.inference.sampling import Sampling
from janus.models.janus import Janus
from janus.processing.image import load_picture, square_picture, to_signed_pixels
from janus.processing.processor import Processor
from janus.training.data.example import Example, conversation_example, drawing_example
from janus.training.data.outline import (
    IGNORE,
    Geometry,
    codes_of,
    conversation_outline,
    outline,
    text_outline,
)
from janus.training.data.rows import Conversation, Drawing, Text

WIDE = Image.new("RGB", (40, 20), (250, 10, 30))
TALL = Image.new("RGB", (9, 30), (10, 200, 30))
SPECIALS = ("<｜end▁of▁sentence｜>", "<image_placeholder>", "<|User|>", "<begin_of_image>", "\n\n", ": ")
words = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(SPECIALS)), max_size=4).map("".join)
answers = words.filter(str.strip)
pictures = st.sampled_from([WIDE, TALL])


@st.composite
def contents(draw: st.DrawFn) -> Any:
    """A user's message: a string, or parts in any order."""
    text = st.builds(lambda text: {"type": "text", "text": text}, words)
    image = st.builds(lambda picture: {"type": "image", "image": picture}, pictures)
    return draw(st.one_of(words, st.lists(st.one_of(text, image), max_size=4)))


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """One to three questions and their answers, perhaps under a system message."""
    messages = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(contents())})
        messages.append({"role": "assistant", "content": draw(answers)})
    return messages


def check_shapes(example: Example) -> None:
    """What holds for every example: labels are the next ids, and no position is two things."""
    labeled = example.labels != IGNORE
    assert not labeled[-1]
    assert torch.equal(example.labels[labeled], example.ids[1:][labeled[:-1]])
    assert not (example.image_mask & example.code_mask).any()
    assert not (labeled & example.code_labels_mask).any()
    for mask in (example.image_mask, example.code_mask, example.code_labels_mask):
        assert mask.dtype == torch.bool
        assert mask.shape == example.ids.shape == example.labels.shape == (len(example),)
    assert example.ids.dtype == example.labels.dtype == torch.int64


@given(messages=conversations())
@settings(max_examples=40)
def test_a_conversation_is_what_inference_reads(
    processor: Processor, plain_roles: Processor, messages: list[dict[str, Any]]
) -> None:
    for each in (processor, plain_roles):
        example = conversation_example(each, messages)
        batch = each(messages)
        check_shapes(example)
        assert torch.equal(example.ids, batch.input_ids[0])
        assert torch.equal(example.image_mask, batch.image_mask[0])
        assert torch.equal(example.pixels, batch.pixels)
        assert example.task == ("understanding" if len(batch.pixels) else "text")
        assert example.codes is None
        assert len(example.targets) == 0
        assert not example.code_mask.any()


@given(messages=conversations())
@settings(max_examples=40)
def test_answers_alone_are_learned_with_their_end(
    processor: Processor, plain_roles: Processor, messages: list[dict[str, Any]]
) -> None:
    for each in (processor, plain_roles):
        document = conversation_outline(each, messages)
        predicted = [False, *(document.labels != IGNORE).tolist()[:-1]]
        edges = [index for index in range(1, len(predicted)) if predicted[index] != predicted[index - 1]]
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        # The last answer ends the document.
        spans = list(zip(edges[::2], [*edges[1::2], len(predicted)], strict=False))
        assert len(spans) == len(turns)
        for (first, end), turn in zip(spans, turns, strict=True):
            # Up to there is what the model has before it when it is asked.
            asked = each(messages[:turn]).input_ids[0].tolist()
            assert document.ids[:first].tolist() == asked
            text = each.tokenizer.decode(document.ids[first:end].tolist(), skip_special=False)
            assert text == f" {messages[turn]['content'].strip()}<｜end▁of▁sentence｜>"
            assert document.ids[end - 1] == each.tokenizer.eos_id


def test_the_released_style_is_the_same_example(processor: Processor) -> None:
    user, assistant = processor.roles
    released = [
        {"role": user, "content": "<image_placeholder>\nWhat is it?", "images": [WIDE]},
        {"role": assistant, "content": "A strip."},
        {"role": user, "content": "Which color?"},
        {"role": assistant, "content": "Red."},
    ]
    parts = [{"type": "image", "image": WIDE}, {"type": "text", "text": "What is it?"}]
    openai = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "A strip."},
        {"role": "user", "content": "Which color?"},
        {"role": "assistant", "content": "Red."},
    ]
    ours, theirs = conversation_example(processor, openai), conversation_example(processor, released)
    for name in ("ids", "labels", "image_mask", "pixels"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert (ours.labels == processor.tokenizer.eos_id).sum() == 2


def test_a_picture_in_an_answer_is_never_a_label(processor: Processor) -> None:
    shown = [{"type": "text", "text": "This:"}, {"type": "image", "image": TALL}]
    messages = [{"role": "user", "content": "Show it."}, {"role": "assistant", "content": shown}]
    example = conversation_example(processor, messages)
    check_shapes(example)
    around = {processor.image_id, processor.image_start_id, processor.image_end_id}
    assert not around & set(example.labels.tolist())
    assert example.image_mask.sum() == processor.config.num_image_tokens


def test_a_system_prompt_is_an_option(processor: Processor) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for system in (None, "", "Be brief."):
        example = conversation_example(processor, messages, system=system)
        assert torch.equal(example.ids, processor(messages, system=system).input_ids[0])


def test_a_text_is_learned_whole(processor: Processor) -> None:
    document = text_outline(processor, "a <|User|> b")
    assert document.labels[:-1].tolist() == document.ids[1:].tolist()
    assert document.ids[0] == processor.tokenizer.bos_id
    assert document.ids[-1] == processor.tokenizer.eos_id
    assert processor.tokenizer.id("<|User|>") not in document.ids
    assert processor.tokenizer.decode(document.ids.tolist()) == "a <|User|> b"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": "a"}], "message 0 is 'user': a conversation to learn from ends with"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
            "message 1: the answer is empty",
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": []}],
            "message 1: the answer is empty",
        ),
        ([{"role": "assistant", "content": "a"}], "message 0: role 'assistant' where 'user' is due"),
        (
            [
                {"role": "<|User|>", "content": "<image_placeholder>", "images": [WIDE, TALL]},
                {"role": "<|Assistant|>", "content": "a"},
            ],
            "1 image placeholders and 2 images",
        ),
    ],
)
def test_conversations_that_teach_nothing(
    processor: Processor, messages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        conversation_outline(processor, messages)


def test_a_template_without_an_end_token_is_refused(folder: Any, processor: Processor) -> None:
    files = {**processor.files, "processor_config.json": b'{"sft_format": "plain", "num_image_tokens": 16}'}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match="the template 'plain' ends it with no end token"):
        conversation_outline(Processor(files, where=str(folder)), messages)


@given(prompt=words)
@settings(max_examples=40)
def test_a_drawings_prompt_is_inferences(
    processor: Processor, plain_roles: Processor, geometry: Geometry, prompt: str
) -> None:
    codes = torch.arange(geometry.tokens) % geometry.codebook
    for each in (processor, plain_roles):
        ids = each.draw_prompt(prompt)
        kept = drawing_example(each, prompt, codes, geometry)
        dropped = drawing_example(each, prompt, codes, geometry, drop_prompt=True)
        assert kept.ids[: len(ids)].tolist() == ids
        pad_id = each.tokenizer.pad_id
        assert tuple(dropped.ids[: len(ids)].tolist()) == unconditional(tuple(ids), pad_id)
        assert set(dropped.ids[1 : len(ids) - 1].tolist()) == {pad_id}
        assert dropped.ids[len(ids) - 1] == each.image_start_id
        for example in (kept, dropped):
            check_shapes(example)
            # The last code is predicted and never fed.
            assert len(example) == len(ids) + geometry.tokens - 1
            assert example.code_mask.nonzero()[:, 0].tolist() == list(range(len(ids), len(example)))
            predicting = example.code_labels_mask.nonzero()[:, 0].tolist()
            assert predicting == list(range(len(ids) - 1, len(example)))
            assert len(predicting) == geometry.tokens
            assert (example.labels == IGNORE).all()
            assert torch.equal(example.codes, codes[None])
            assert len(example.targets) == 0
            assert example.task == "drawing"


@torch.no_grad()
@pytest.mark.parametrize("drop_prompt", [False, True], ids=["prompt", "without prompt"])
def test_a_drawing_has_the_logits_of_inference(
    model: Janus,
    processor: Processor,
    geometry: Geometry,
    close: Callable[[Tensor, Tensor], None],
    drop_prompt: bool,
) -> None:
    prompt = "a red circle"
    picture = Picture(prompt=tuple(processor.draw_prompt(prompt)))
    pad_id = processor.tokenizer.pad_id
    steps = list(draw_steps(model, [picture], pad_id=pad_id, sampling=Sampling(temperature=0)))
    codes = torch.stack([step.codes for step in steps], dim=1)[0]
    example = drawing_example(processor, prompt, codes, geometry, drop_prompt=drop_prompt)
    embeds = model.embed(example.ids[None], example.pixels, example.image_mask[None])
    embeds[:, example.code_mask] = model.embed_codes(example.codes[:, :-1])
    logits = model.image_logits(model.hidden_states(embeds)[:, example.code_labels_mask])[0]
    read = [step.unconditional if drop_prompt else step.conditional for step in steps]
    close(logits, torch.cat(read))


def test_drawn_and_seen_pictures_go_two_ways(processor: Processor, geometry: Geometry) -> None:
    seen = conversation_example(
        processor,
        [
            {"role": "user", "content": [{"type": "image", "image": WIDE}]},
            {"role": "assistant", "content": "A red strip."},
        ],
    ).pixels
    drawn = drawing_example(processor, "a red strip", WIDE, geometry).targets
    assert seen.shape == drawn.shape == (1, 3, 64, 64)
    assert not torch.equal(seen, drawn)
    # Seen whole, in bars of the mean color: 127 of 255 for a mean of one half.
    bars = torch.full((3, 16, 64), 127 / 127.5 - 1)
    # float32 rounds the two ways of normalizing apart by one unit in the last place of 1.
    assert torch.allclose(seen[0, :, :16], bars, rtol=0, atol=1e-6)
    assert torch.allclose(seen[0, :, -16:], bars, rtol=0, atol=1e-6)
    # Drawn without bars: all of it is the strip's color.
    color = torch.tensor([250, 10, 30]) / 127.5 - 1
    assert torch.allclose(drawn[0], color[:, None, None].expand(3, 64, 64), rtol=0, atol=1e-6)


def test_a_target_is_what_reconstruct_reads(processor: Processor, geometry: Geometry) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    example = drawing_example(processor, "noise", noise, geometry)
    square = square_picture(load_picture(noise), geometry.size)
    assert torch.equal(example.targets, to_signed_pixels(square)[None])
    assert example.codes is None
    assert example.targets.min() >= -1
    assert example.targets.max() <= 1


def test_corrected_pictures_are_corrected_both_ways(folder: Any, processor: Processor, data: Any) -> None:
    turned = data / "preprocess" / "images" / "exif_orientation6.png"
    corrected = Processor(processor.files, where=str(folder), corrected_pictures=True)
    geometry = Geometry(grid=8, factor=8, codebook=256)
    ours, theirs = (drawing_example(each, "a", turned, geometry).targets for each in (corrected, processor))
    square = square_picture(load_picture(turned, corrected=True), 64)
    assert torch.equal(ours[0], to_signed_pixels(square))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([1] * 63, r"codes have the shape \(63,\): a picture of this model has 8 x 8 codes"),
        ([[1] * 4] * 16, r"codes have the shape \(16, 4\)"),
        ([256] * 64, "codes run from 256 to 256, of a codebook of 256"),
        ([-1] * 64, "codes run from -1 to -1"),
        ([0.5] * 64, "codes are of torch.float32: give 64 whole numbers"),
        ([True] * 64, "codes are of torch.bool"),
        ([[1], [1, 2]], "give 64 whole numbers"),
        ("abc", "codes are 'abc': give 64 whole numbers"),
        ([2**70] * 64, "give 64 whole numbers"),
        (None, "codes are None"),
        ([], r"codes are of torch.float32"),
    ],
)
def test_malformed_codes(geometry: Geometry, codes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codes_of(codes, geometry)


def test_codes_of_every_form(geometry: Geometry) -> None:
    expected = torch.arange(64)
    for codes in (list(range(64)), expected.view(8, 8), np.arange(64, dtype=np.uint16), expected.int()):
        assert torch.equal(codes_of(codes, geometry), expected)
        assert codes_of(codes, geometry).dtype == torch.int64


def test_rows_are_named_in_errors(processor: Processor, geometry: Geometry) -> None:
    with pytest.raises(ValueError, match=r"^a.jsonl:3: message 0 is 'user'"):
        outline(Conversation([{"role": "user", "content": "a"}], "a.jsonl:3"), processor)
    with pytest.raises(ValueError, match=r"^a.jsonl:4: a drawing among the data: give the geometry"):
        outline(Drawing("a", codes=[1], where="a.jsonl:4"), processor)
    with pytest.raises(ValueError, match=r"^a.jsonl:4: codes have the shape"):
        outline(Drawing("a", codes=[1], where="a.jsonl:4"), processor, geometry)
    assert outline(Text("a"), processor).task == "text"
