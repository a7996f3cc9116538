"""The four verbs end to end on the small checkpoint, and what load() and they refuse."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import janus

SIZE = 64


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    return data / "januspro" / "checkpoint"


@pytest.fixture(scope="module")
def loaded(folder: Path) -> janus.Pipeline:
    return janus.load(folder, device="cpu", dtype="float32")


@pytest.fixture
def pipe(loaded: janus.Pipeline) -> janus.Pipeline:
    """Without memory of another test's chat."""
    return janus.Pipeline(loaded.model, loaded.processor)


@pytest.fixture(scope="module")
def pictures(golden: dict[str, Tensor]) -> list[Image.Image]:
    """The three golden pictures at the model's own size, where processing only maps them back."""
    values = ((golden["vision.pixel_values"] + 1) * 127.5).round().byte()
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in values]


def arrays(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])


@contextmanager
def runs_of(pipe: janus.Pipeline) -> Iterator[list[int]]:
    """How many positions each run of the language model computed while the block ran."""
    runs: list[int] = []
    handle = pipe.model.language.register_forward_pre_hook(
        lambda module, given: runs.append(given[0].shape[1])
    )
    try:
        yield runs
    finally:
        handle.remove()


def changed(folder: Path, to: Path, name: str, **values: Any) -> Path:
    """A copy of the checkpoint with other values in one of its JSON files."""
    copied = shutil.copytree(folder, to / "checkpoint")
    before = json.loads((copied / name).read_text()) if (copied / name).exists() else {}
    (copied / name).write_text(json.dumps(before | values))
    return copied


def test_parts(pipe: janus.Pipeline, folder: Path) -> None:
    assert isinstance(pipe.model, janus.Janus)
    assert isinstance(pipe.processor, janus.Processor)
    assert pipe.config is pipe.model.config
    assert pipe.config.picture_size == SIZE
    assert janus.load(str(folder), device="cpu", dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["und0", "und1", "und2"])
def test_the_originals_answers(
    name: str,
    pipe: janus.Pipeline,
    golden: dict[str, Tensor],
    facts: dict[str, Any],
    pictures: list[Image.Image],
) -> None:
    shown = golden[f"{name}.pixel_values"][golden[f"{name}.images_emb_mask"].bool().any(-1)]
    numbers = iter(
        next(
            number for number, pixels in enumerate(golden["vision.pixel_values"]) if torch.equal(pixels, own)
        )
        for own in shown
    )
    conversations = [
        [
            message | {"images": [pictures[next(numbers)] for _ in range(message["content"].count("<image"))]}
            for message in conversation
        ]
        for conversation in facts["conversations"][name]
    ]
    decode = pipe.processor.tokenizer.decode
    expected = [decode(row.tolist()) for row in golden[f"{name}.greedy_sequences"]]
    assert [pipe.chat(each, max_new_tokens=24) for each in conversations] == expected
    assert pipe.chat(conversations, max_new_tokens=24) == expected


def test_the_originals_answer_from_the_original_file(
    shared: Path, pipe: janus.Pipeline, golden: dict[str, Tensor]
) -> None:
    path = shared / "oracle" / "preprocess" / "images" / "equation.png"
    answer = pipe.ask("Convert the formula into latex code.", path, max_new_tokens=24)
    assert answer == pipe.processor.tokenizer.decode(golden["und1.greedy_sequences"][0].tolist())


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.8, "top_p": 0.95, "seed": 3}], ids=["greedy", "sampled"]
)
def test_a_stream_joins_to_the_answer(
    options: dict[str, Any], pipe: janus.Pipeline, pictures: list[Image.Image]
) -> None:
    question = "What is in the picture?"
    whole = pipe.ask(question, pictures[0], max_new_tokens=20, **options)
    stream = pipe.ask(question, pictures[0], max_new_tokens=20, stream=True, **options)
    assert not isinstance(stream, str)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == whole
    messages = [{"role": "user", "content": question}]
    chatted = pipe.chat(messages, max_new_tokens=20, stream=True, **options)
    assert "".join(chatted) == pipe.ask(question, max_new_tokens=20, **options)


def test_the_end_token_ends_the_answer_and_is_no_part_of_it(
    pipe: janus.Pipeline, golden: dict[str, Tensor], facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The small model never ends by itself; the original was run with another of its tokens as the end.
    monkeypatch.setattr(pipe.processor.tokenizer, "eos_id", facts["greedy_eos_variant_eos_id"]["und0"])
    expected = pipe.processor.tokenizer.decode(golden["und0.greedy_sequences_eos"][0, :-1].tolist())
    (messages,) = facts["conversations"]["und0"]
    assert pipe.chat(messages, max_new_tokens=24) == expected
    assert "".join(pipe.chat(messages, max_new_tokens=24, stream=True)) == expected


def test_ask_is_a_chat_of_one_turn(pipe: janus.Pipeline, pictures: list[Image.Image]) -> None:
    parts = [{"type": "image", "image": picture} for picture in pictures[:2]]
    content = [*parts, {"type": "text", "text": "Which is brighter?"}]
    asked = pipe.ask("Which is brighter?", pictures[:2], max_new_tokens=12)
    assert asked == pipe.chat([{"role": "user", "content": content}], max_new_tokens=12)
    assert asked != pipe.ask("Which is brighter?", pictures[1::-1], max_new_tokens=12)
    assert asked != pipe.ask("Which is brighter?", pictures[:2], system="", max_new_tokens=12)


def test_pictures_come_in_every_form(
    pipe: janus.Pipeline, pictures: list[Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    pictures[1].save(path)
    forms = [path, str(path), pictures[1], np.asarray(pictures[1]), np.asarray(pictures[1]) / 255]
    answers = {pipe.ask("What is it?", form, max_new_tokens=10) for form in [*forms, [path]]}
    assert len(answers) == 1
    assert answers != {pipe.ask("What is it?", max_new_tokens=10)}
    rebuilt = [np.asarray(pipe.reconstruct(form)) for form in forms]
    assert all(np.array_equal(each, rebuilt[0]) for each in rebuilt)


def test_a_chat_computes_only_what_is_new(pipe: janus.Pipeline, pictures: list[Image.Image]) -> None:
    first = [{"role": "user", "content": [{"type": "image", "image": pictures[0]}]}]
    answer = pipe.chat(first, max_new_tokens=8)
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "Why?"}]
    ids = [pipe.processor(messages).input_ids[0].tolist() for messages in (first, second)]
    # The first prompt begins the second; whether the answer's tokens come back is the tokenizer's affair.
    assert ids[1][: len(ids[0])] == ids[0]
    with runs_of(pipe) as runs:
        resumed = pipe.chat(second, max_new_tokens=8)
    assert runs[0] <= len(ids[1]) - len(ids[0])
    with runs_of(pipe) as runs:
        fresh = janus.Pipeline(pipe.model, pipe.processor).chat(second, max_new_tokens=8)
    assert runs[0] == len(ids[1])
    assert resumed == fresh
    # The same once more: all is known but the last position, which must be run.
    with runs_of(pipe) as runs:
        assert pipe.chat(second, max_new_tokens=8) == fresh
    assert runs[0] == 1


def test_a_broken_off_chat_goes_on(pipe: janus.Pipeline) -> None:
    messages = [{"role": "user", "content": "Tell me a long story."}]
    whole = pipe.chat(messages, max_new_tokens=16)
    stream = pipe.chat(messages, max_new_tokens=16, stream=True)
    assert not isinstance(stream, str)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    with runs_of(pipe) as runs:
        assert pipe.chat(messages, max_new_tokens=16) == whole
    assert runs[0] == 1
    # A stream that nobody read leaves nothing behind, and another chat may run before it does.
    unread = pipe.chat(messages, max_new_tokens=16, stream=True)
    assert pipe.chat(messages, max_new_tokens=16) == whole
    assert "".join(unread) == whole


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 9}], ids=["greedy", "sampled"])
def test_many_conversations_are_each_alone(options: dict[str, Any], pipe: janus.Pipeline) -> None:
    conversations = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Tell me a much longer story about a circle and a square."}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Bye"},
        ],
    ]
    together = pipe.chat(conversations, max_new_tokens=10, **options)
    assert together == [pipe.chat(each, max_new_tokens=10, **options) for each in conversations]
    assert len(set(together)) == 3


def test_reconstruct(pipe: janus.Pipeline, pictures: list[Image.Image]) -> None:
    rebuilt = pipe.reconstruct(pictures[0])
    values = torch.from_numpy(np.array(pictures[0])).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = pipe.model.vq.decode(pipe.model.vq.encode(values))[0].permute(1, 2, 0)
    difference = np.asarray(rebuilt) - ((expected + 1) / 2 * 255).clamp(0, 255).numpy()
    # Truncated to 8 bits, so up to one below.
    assert np.abs(difference + 0.5).max() < 0.51
    wide = Image.new("RGB", (3 * SIZE, SIZE))
    wide.paste(pictures[0], (SIZE, 0))
    assert np.array_equal(pipe.reconstruct(wide), rebuilt), "the center square"


def test_drawing_defaults_are_the_checkpoints(pipe: janus.Pipeline, folder: Path, tmp_path: Path) -> None:
    stated = {"guidance_scale": 2, "temperature": 0.5}
    other = janus.load(changed(folder, tmp_path, "generation_config.json", **stated), dtype="float32")
    own = arrays(other.draw("a cat", seed=7))
    released = arrays(pipe.draw("a cat", seed=7))
    assert np.array_equal(own, arrays(pipe.draw("a cat", seed=7, guidance=2, temperature=0.5)))
    assert not np.array_equal(own, released)
    assert np.array_equal(arrays(other.draw("a cat", seed=7, guidance=5, temperature=1)), released)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("processor_config.json", {"num_image_tokens": 15}, "16 tokens of a picture, .* files say 15"),
        ("preprocessor_config.json", {"image_size": 48}, "pictures of 64 pixels, .* files say 48"),
    ],
)
def test_files_that_contradict_each_other(
    name: str, values: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        janus.load(changed(folder, tmp_path, name, **values))


def test_load_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        janus.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "call",
    [
        lambda pipe: pipe.ask("Why?", steps=3),
        lambda pipe: pipe.chat([{"role": "user", "content": "Why?"}], top_k=3),
        lambda pipe: pipe.draw("a cat", strength=0.5),
        lambda pipe: pipe.draw("a cat", 4),
    ],
    ids=["ask", "chat", "draw", "draw by position"],
)
def test_unknown_options_raise(call: Callable[[janus.Pipeline], Any], pipe: janus.Pipeline) -> None:
    with pytest.raises(TypeError):
        call(pipe)


USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([USER, ASSISTANT], {}, "the last message is the assistant's"),
        ([[USER], [USER, ASSISTANT]], {}, "the last message is the assistant's"),
        ([[USER], [USER]], {"stream": True}, "stream=True is for one conversation, and these are 2"),
        ([USER], {"max_new_tokens": 1000}, "over the context window of 1024: ask for"),
        ([USER], {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, not 0"),
        ([USER], {"temperature": -1}, "temperature must be 0"),
        ([USER], {"batch_size": -3}, "batch_size must be a whole number of at least 1, not -3"),
        (
            [{"role": "tool", "content": "Hi"}],
            {},
            r"message 0: role 'tool' is none of this model's: use user and assistant, or <\|User",
        ),
        ([{"role": "User", "content": "Hi"}], {}, "message 0: role 'User' is none of this model's"),
        (
            [{"role": "<|User|>", "content": "Hi"}, {"role": "<|Assistant|>", "content": "Hello"}],
            {},
            "the last message is the assistant's",
        ),
        ([{"role": "<|User|>", "content": "Hi"}], {}, r"an empty one of the role <\|Assistant\|> follows it"),
        ([], {}, "a conversation is empty"),
    ],
)
def test_chats_that_cannot_be(
    messages: list[Any],
    options: dict[str, Any],
    message: str,
    pipe: janus.Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipe.model, "hidden_states", lambda *given: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        pipe.chat(messages, **options)


def test_a_conversation_over_the_window(pipe: janus.Pipeline, pictures: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match=r"over the context window of 1024: shorten .* fewer pictures"):
        pipe.ask("Why?", [pictures[0]] * 70, max_new_tokens=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe: pipe.chat({"role": "user", "content": "Hi"}), "messages must be a list of messages"),
        (lambda pipe: pipe.chat(5), "messages must be a list of messages, not int"),
        (lambda pipe: pipe.draw(None), "a prompt must be a string, or a list of strings, not None"),
        (lambda pipe: pipe.draw(["a cat", 5]), "a prompt must be a string, or a list of strings"),
        (lambda pipe: pipe.draw("a cat", progress="bar"), "progress must be None, True, False or a function"),
        (lambda pipe: pipe.draw("a cat", seed="seven"), "seed must be a whole number, not 'seven'"),
        (lambda pipe: pipe.draw("a cat", guidance=10**400), "guidance must be a number from"),
        (
            lambda pipe: pipe.draw("a cat", preview=5),
            "preview must be a function of a list of pictures, not 5",
        ),
        (
            lambda pipe: pipe.draw("a cat", size=np.zeros(2)),
            r"size array\(\[0., 0.\]\) cannot be drawn: this model draws",
        ),
        (lambda pipe: pipe.model.save_pretrained(""), "the folder to save into has no name: give one"),
        (
            lambda pipe: janus.load(revision="v1"),
            "revision 'v1' is of models on the hub, and .*shapes is a folder",
        ),
        (lambda pipe: pipe.ask("Hi", temperature=1e-40), "temperature must be 0 \\(greedy\\) or at least"),
        (lambda pipe: pipe.ask("\ud800"), "half of a character"),
        (lambda pipe: janus.load(3), "named by a folder or a hub id"),
    ],
)
def test_ordinary_mistakes_are_one_line(
    call: Callable[[janus.Pipeline], Any], message: str, pipe: janus.Pipeline
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        call(pipe)
    assert "\n" not in str(raised.value)


def test_numpys_numbers_are_numbers(pipe: janus.Pipeline) -> None:
    expected = arrays(pipe.draw("a cat", seed=7, n=2))
    assert np.array_equal(arrays(pipe.draw("a cat", seed=np.int64(7), n=np.int32(2))), expected)
    for number in (np.int64(3), np.float32(3), np.float64(3)):
        guided = arrays(pipe.draw("a cat", seed=7, guidance=number, temperature=np.float32(0.5)))
        assert np.array_equal(guided, arrays(pipe.draw("a cat", seed=7, guidance=3.0, temperature=0.5)))
    own = {"max_new_tokens": 4, "temperature": 0.5, "top_p": 0.5, "seed": 1}
    assert pipe.ask("Hi", **{**own, "top_p": np.float32(0.5)}) == pipe.ask("Hi", **own)


def test_a_list_of_two_is_a_size(pipe: janus.Pipeline) -> None:
    own = pipe.config.picture_size
    pictures = [pipe.draw("a cat", seed=7, size=size) for size in (own, (own, own), [own, own])]
    assert all(np.array_equal(arrays(each), arrays(pictures[0])) for each in pictures)


def test_weights_that_are_no_numbers_neither_speak_nor_draw(folder: Path, tmp_path: Path) -> None:
    pipe = janus.load(folder, device="cpu", dtype="float32")
    with torch.no_grad():
        pipe.model.language.norm.weight[3] = torch.nan
    says = "the language model computes NaN: look for damaged weights with janus info --check"
    with pytest.raises(ValueError, match=says):
        pipe.ask("Hi", max_new_tokens=4)
    with pytest.raises(ValueError, match=says):
        pipe.chat([[USER], [USER]], max_new_tokens=4)
    with pytest.raises(ValueError, match=says):
        pipe.draw("a cat", seed=7)


def test_what_draws_reads_pictures_corrected_too(folder: Path, tmp_path: Path) -> None:
    """Turned upright as a camera says: through the tokenizer as through the vision tower."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))
    plain, corrected = (
        janus.load(folder, device="cpu", dtype="float32", corrected_pictures=each) for each in (False, True)
    )
    for pipe, picture in ((plain, turned), (corrected, upright)):
        assert np.array_equal(
            np.asarray(pipe.reconstruct(tmp_path / "turned.png")), np.asarray(plain.reconstruct(picture))
        )
        drawn = [
            pipe.draw("a cat", seed=7, prefix=each, rows=3) for each in (tmp_path / "turned.png", picture)
        ]
        assert np.array_equal(*map(arrays, drawn))


def test_a_tokenizer_beyond_the_models_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy")
    description = json.loads((copied / "tokenizer.json").read_text())
    description["model"]["vocab"]["!"] = 600000
    (copied / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(
        ValueError, match="the tokenizer has the id 600000, and the model knows 640 tokens only"
    ):
        janus.load(copied)


def test_a_chat_forgets_what_other_weights_computed(folder: Path) -> None:
    pipe = janus.load(folder, device="cpu", dtype="float32")
    messages = [{"role": "user", "content": "Hello there"}]
    before = pipe.chat(messages, max_new_tokens=12)
    with torch.no_grad():
        for parameter in pipe.model.language.layers.parameters():
            parameter.mul_(0.5)
    fresh = janus.Pipeline(pipe.model, pipe.processor).chat(messages, max_new_tokens=12)
    assert pipe.chat(messages, max_new_tokens=12) == fresh != before
    pipe.model.double()
    assert isinstance(pipe.chat(messages, max_new_tokens=2), str)


def test_a_chat_forgets_what_other_quantized_weights_computed(folder: Path) -> None:
    """They are buffers, not parameters."""
    pipe = janus.load(folder, device="cpu", quantize="int8")
    messages = [{"role": "user", "content": "Hello there"}]
    before = pipe.chat(messages, max_new_tokens=12)
    for name, buffer in pipe.model.named_buffers():
        if name.endswith("weight_scale"):
            buffer.mul_(0.5)
    fresh = janus.Pipeline(pipe.model, pipe.processor).chat(messages, max_new_tokens=12)
    assert pipe.chat(messages, max_new_tokens=12) == fresh != before


def test_a_pipeline_made_in_inference_mode_chats(folder: Path, pipe: janus.Pipeline) -> None:
    """Tensors of inference mode count no versions, by which a chat sees otherwise that weights changed."""
    messages = [{"role": "user", "content": "Hello there"}]
    with torch.inference_mode():
        made = janus.load(folder, device="cpu", dtype="float32")
        assert made.chat(messages, max_new_tokens=8) == pipe.chat(messages, max_new_tokens=8)
        assert made.ask("Hello there", max_new_tokens=8) == pipe.ask("Hello there", max_new_tokens=8)


def test_what_begins_in_inference_mode_goes_on_outside(folder: Path, pipe: janus.Pipeline) -> None:
    own = janus.load(folder, device="cpu", dtype="float32")
    messages = [{"role": "user", "content": "Hello there"}]
    with torch.inference_mode():
        own.chat(messages, max_new_tokens=8)
        stream = own.ask("Hello there", max_new_tokens=8, stream=True)
    assert own.chat(messages, max_new_tokens=8) == pipe.chat(messages, max_new_tokens=8)
    assert "".join(stream) == pipe.ask("Hello there", max_new_tokens=8)
