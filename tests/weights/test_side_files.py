"""The side files of both layouts: read, refused where they cannot be honored, written for either reader."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from janus.processing import Processor
from janus.weights.processor_config import (
    SIDE_FILES,
    ProcessorConfig,
    read_generation_defaults,
    read_processor_config,
    read_side_files,
    read_special_tokens,
    read_window,
)
from janus.weights.side_files import (
    convert_side_files,
    image_token_id,
    processor_side_files,
    side_layout,
)

PICTURE = Image.new("RGB", (64, 64), (10, 200, 30))
QUESTION: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is it?"}],
    }
]


@pytest.fixture(scope="module")
def released(data: Path) -> dict[str, bytes]:
    return read_side_files(data / "januspro" / "checkpoint")


def edited(files: dict[str, bytes], name: str, *removed: str, **values: Any) -> dict[str, bytes]:
    """The files with other values, and without the removed keys, in one of them."""
    content = json.loads(files.get(name, b"{}")) | values
    for key in removed:
        del content[key]
    return {**files, name: json.dumps(content).encode()}


def write(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_the_released_files(released: dict[str, bytes], data: Path) -> None:
    config = read_processor_config(read_side_files(data / "januspro" / "checkpoint"))
    assert config == ProcessorConfig(
        image_size=64,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        rescale_factor=0.00392156862745098,
        num_image_tokens=16,
        extra_processor={"ignore_id": -100, "mask_prompt": True},
    )
    assert config.background == (127, 127, 127)
    special = read_special_tokens(released)
    assert (special.bos, special.pad) == ("<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>")
    assert special.additional is not None
    assert "<|User|>" in special.additional
    assert side_layout(released) == "deepseek"
    assert read_window(released) == 16384
    assert image_token_id(released) == 483
    assert image_token_id({}) is None


def test_what_a_file_leaves_out_is_the_originals_default() -> None:
    config = read_processor_config({"preprocessor_config.json": b'{"image_size": 32}'})
    assert config == ProcessorConfig(image_size=32)
    assert config.background == (122, 116, 104)
    assert (config.min_size, config.do_normalize, config.num_image_tokens) == (14, True, 576)
    bare = {"image_size": 32, "do_normalize": False, "image_mean": None, "image_std": None}
    first = read_processor_config({"preprocessor_config.json": json.dumps(bare).encode()})
    assert first.background == (127, 127, 127)
    assert not first.do_normalize


def test_the_files_own_background_is_ignored(released: dict[str, bytes]) -> None:
    files = edited(released, "preprocessor_config.json", background_color=[1, 2, 3])
    assert read_processor_config(files).background == (127, 127, 127)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("preprocessor_config.json", {"image_size": 0}),
        ("preprocessor_config.json", {"image_size": -3}),
        ("preprocessor_config.json", {"image_size": "64"}),
        ("preprocessor_config.json", {"image_size": 64.5}),
        ("preprocessor_config.json", {"image_size": True}),
        ("preprocessor_config.json", {"image_size": None}),
        ("preprocessor_config.json", {"min_size": 0}),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}),
        ("preprocessor_config.json", {"image_mean": 0.5}),
        ("preprocessor_config.json", {"image_mean": ["a", 0, 0]}),
        ("preprocessor_config.json", {"image_mean": None}),
        ("preprocessor_config.json", {"image_mean": [float("nan"), 0, 0]}),
        ("preprocessor_config.json", {"image_std": [0.5, 0, 0.5]}),
        ("preprocessor_config.json", {"image_std": None}),
        ("preprocessor_config.json", {"rescale_factor": "1/255"}),
        ("preprocessor_config.json", {"rescale_factor": float("inf")}),
        ("preprocessor_config.json", {"do_normalize": 1}),
        ("preprocessor_config.json", {"min_size": 65}),
        ("preprocessor_config.json", {"rescale_factor": 10**400}),
        ("preprocessor_config.json", {"do_resize": False}),
        ("preprocessor_config.json", {"do_pad": False}),
        ("preprocessor_config.json", {"resample": 2}),
        ("processor_config.json", {"num_image_tokens": 0}),
        ("processor_config.json", {"image_tag": 3}),
        ("processor_config.json", {"sft_format": ["deepseek"]}),
        ("processor_config.json", {"add_special_token": True}),
        ("processor_config.json", {"image_processor": 3}),
    ],
)
def test_values_that_cannot_be_honored(
    released: dict[str, bytes], tmp_path: Path, name: str, values: dict[str, Any]
) -> None:
    folder = write(edited(released, name, **values), tmp_path)
    key = next(iter(values))
    with pytest.raises(ValueError, match=rf"^[^\n]*{name}: {key} = [^\n]*$"):
        read_processor_config(read_side_files(folder), where=str(folder))


@pytest.mark.parametrize(
    "size", [{"height": 64, "width": 32}, {"shortest_edge": 64}, {"height": 64}, "64", [64, 64], 0]
)
def test_sizes_that_cannot_be_honored(size: Any) -> None:
    content = json.dumps({"size": size}).encode()
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: "):
        read_processor_config({"preprocessor_config.json": content})


@pytest.mark.parametrize("name", [name for name in SIDE_FILES if name.endswith("_config.json")])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe\x00", b'"text"'])
def test_broken_json(released: dict[str, bytes], name: str, content: bytes) -> None:
    files = {**released, name: content}
    readers: dict[str, Any] = {
        "tokenizer_config.json": read_window,
        "generation_config.json": read_generation_defaults,
    }
    with pytest.raises(ValueError, match=rf"^[^\n]*{name}[^\n]*$"):
        readers.get(name, read_processor_config)(files)


@pytest.mark.parametrize("entries", ["<|User|>", [3], [{"text": "<|User|>"}], {"a": 1}])
def test_special_tokens_of_the_wrong_shape(released: dict[str, bytes], entries: Any) -> None:
    files = edited(released, "special_tokens_map.json", additional_special_tokens=entries)
    with pytest.raises(ValueError, match=r"special_tokens_map\.json: additional_special_tokens = "):
        read_special_tokens(files)
    with pytest.raises(ValueError, match=r"special_tokens_map\.json: pad_token = 3"):
        read_special_tokens(edited(released, "special_tokens_map.json", pad_token=3))


def test_absent_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither preprocessor_config\.json nor"):
        read_processor_config(read_side_files(tmp_path))
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        read_side_files(tmp_path / "none")
    assert read_special_tokens(read_side_files(tmp_path)).additional is None
    assert read_generation_defaults(read_side_files(tmp_path)) == {}


def test_generation_defaults() -> None:
    def read(content: bytes) -> dict[str, Any]:
        return read_generation_defaults({"generation_config.json": content})

    assert read(b'{"guidance_scale": 5, "temperature": 0.5, "top_k": 3}') == {
        "guidance": 5,
        "temperature": 0.5,
    }
    assert read(b'{"temperature": null}') == {}
    assert read(b'{"num_inference_steps": 12}') == {"steps": 12}
    with pytest.raises(ValueError, match="guidance_scale = "):
        read(b'{"guidance_scale": "x"}')
    for steps in (b"0", b"2.5", b"true", b'"x"'):
        with pytest.raises(ValueError, match=r"num_inference_steps = .*: must be a positive whole number"):
            read(b'{"num_inference_steps": ' + steps + b"}")


def test_the_same_layout_keeps_every_byte(released: dict[str, bytes]) -> None:
    config = read_processor_config(released)
    assert processor_side_files(config, released, "deepseek") == released
    assert convert_side_files({**released, "other.txt": b""}, "deepseek") == released
    ported = processor_side_files(config, released, "transformers")
    assert processor_side_files(read_processor_config(ported), ported, "transformers") == ported
    assert convert_side_files({"tokenizer.json": b"x"}, "transformers") == {"tokenizer.json": b"x"}
    bare = {name: ported[name] for name in ("processor_config.json", "preprocessor_config.json")}
    assert read_processor_config(convert_side_files(bare, "deepseek")) == config
    with pytest.raises(ValueError, match="layout is 'gguf'"):
        processor_side_files(config, released, "gguf")  # type: ignore[arg-type]


def test_another_config_is_written(released: dict[str, bytes]) -> None:
    files = edited(released, "preprocessor_config.json", unknown={"kept": 1})
    config = dataclasses.replace(read_processor_config(files), min_size=7)
    written = processor_side_files(config, files, "deepseek")
    assert read_processor_config(written) == config
    assert json.loads(written["preprocessor_config.json"])["unknown"] == {"kept": 1}
    assert written["tokenizer_config.json"] == files["tokenizer_config.json"]


@pytest.mark.parametrize("case", ["pro", "first_release", "old_roles", "clip", "no_map", "flow_tags"])
def test_there_and_back(released: dict[str, bytes], case: str) -> None:
    files = {
        "pro": edited(released, "preprocessor_config.json", odd=1),
        "first_release": edited(released, "preprocessor_config.json", do_normalize=False),
        "old_roles": edited(
            edited(released, "special_tokens_map.json", "additional_special_tokens"),
            "processor_config.json",
            sft_format="deepseek_old",
        ),
        "clip": edited(released, "preprocessor_config.json", "image_mean", "image_std"),
        "no_map": {name: content for name, content in released.items() if name != "special_tokens_map.json"},
        "flow_tags": edited(
            released,
            "processor_config.json",
            image_start_tag="<image_beg>",
            image_end_tag="<image_end>",
            image_gen_tag="<｜begin▁of▁generation｜>",
        ),
    }[case]
    before = Processor(files)
    ported = convert_side_files(files, "transformers")
    assert side_layout(ported) == "transformers"
    back = convert_side_files(ported, "deepseek")
    assert side_layout(back) == "deepseek"
    assert "chat_template.jinja" not in back
    for files_after in (ported, back):
        after = Processor(files_after)
        assert after.config == before.config
        assert after.template == before.template
        assert after.window == before.window
        ids = [getattr(after.tokenizer, name) for name in ("bos_id", "eos_id", "pad_id")]
        assert ids == [getattr(before.tokenizer, name) for name in ("bos_id", "eos_id", "pad_id")]
        assert after(QUESTION).input_ids.tolist() == before(QUESTION).input_ids.tolist()
        assert after.draw_prompt("a cat") == before.draw_prompt("a cat")


def test_the_tokenizer_is_copied_where_it_adds_bos(released: dict[str, bytes]) -> None:
    adding = convert_side_files(released, "transformers")
    source = {**released, "tokenizer.json": adding["tokenizer.json"]}
    assert convert_side_files(source, "transformers")["tokenizer.json"] == adding["tokenizer.json"]
    assert convert_side_files(adding, "deepseek")["tokenizer.json"] == adding["tokenizer.json"]


def test_generation_config_keeps_what_it_says(released: dict[str, bytes]) -> None:
    further = {"guidance_scale": 3, "temperature": 0.5, "generation_kwargs": {"odd": 1}}
    files = {**released, "generation_config.json": json.dumps(further).encode()}
    written = json.loads(convert_side_files(files, "transformers")["generation_config.json"])
    assert written["guidance_scale"] == 3
    assert written["generation_kwargs"] == {"odd": 1, "boi_token_id": 492}
    assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == (480, 481, 482)
    with pytest.raises(ValueError, match="generation_kwargs = 3"):
        convert_side_files(
            {**released, "generation_config.json": b'{"generation_kwargs": 3}'}, "transformers"
        )


def test_conversion_names_what_is_missing(released: dict[str, bytes]) -> None:
    lacking = edited(released, "processor_config.json", image_end_tag="<nowhere>")
    with pytest.raises(ValueError, match="no token '<nowhere>'"):
        convert_side_files(lacking, "transformers")
    with pytest.raises(ValueError, match=r"tokenizer\.json holds no vocabulary"):
        convert_side_files({**released, "tokenizer.json": b"{}"}, "transformers")


CONVERSATIONS: list[Any] = [
    [{"role": "user", "content": [{"type": "text", "text": " What is 2+2? "}]}],
    QUESTION,
    [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
        {
            "role": "user",
            "content": [{"type": "image", "image": PICTURE}, {"type": "image", "image": PICTURE}],
        },
    ],
]


@pytest.mark.parametrize("roles", ["pro", "old"])
def test_transformers_reads_what_is_written(released: dict[str, bytes], tmp_path: Path, roles: str) -> None:
    transformers = pytest.importorskip("transformers")
    if roles == "old":
        released = edited(released, "special_tokens_map.json", "additional_special_tokens")
    ours = Processor(released)
    folder = write(convert_side_files(released, "transformers"), tmp_path / "ported")
    theirs = transformers.JanusProcessor.from_pretrained(folder)
    assert theirs.num_image_tokens == 16
    for messages in CONVERSATIONS:
        prompt = theirs.apply_chat_template(messages, add_generation_prompt=True)
        assert prompt == ours.format(messages, system="")
        count = prompt.count("<image_placeholder>")
        inputs = theirs(text=prompt, images=[PICTURE] * count or None, return_tensors="pt")
        assert inputs["input_ids"].tolist() == ours(messages).input_ids.tolist()
        if count:
            assert inputs["pixel_values"].shape[-2:] == (64, 64)
    drawing = theirs.apply_chat_template([{"role": "user", "content": "a cat"}], add_generation_prompt=True)
    inputs = theirs(text=drawing, generation_mode="image", return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == ours.draw_prompt("a cat")
    finished = [*CONVERSATIONS[2][:2]]
    assert theirs.apply_chat_template(finished) == ours.format(finished, system="")
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.generation_kwargs["boi_token_id"] == generation.boi_token_id == 492
    assert (generation.pad_token_id, generation.guidance_scale) == (482, 5)


def test_what_transformers_writes_is_read(released: dict[str, bytes], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write(convert_side_files(released, "transformers"), tmp_path / "ported")
    transformers.JanusProcessor.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert "image_processor" in json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    before, after = Processor(released), Processor.from_pretrained(tmp_path / "saved")
    assert after.config.image_size == 64
    assert after.config.image_mean == (0.5, 0.5, 0.5)
    assert after.template == before.template
    assert after.config.num_image_tokens == 16
    restored = Processor(convert_side_files(read_side_files(tmp_path / "saved"), "deepseek"))
    assert restored.template == before.template
    assert restored(QUESTION).input_ids.tolist() == before(QUESTION).input_ids.tolist()


def test_the_flat_files_of_version_4(released: dict[str, bytes]) -> None:
    image = {
        "size": {"height": 64, "width": 64},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "min_size": 14,
    }
    extra = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    files = {
        "tokenizer.json": released["tokenizer.json"],
        "special_tokens_map.json": released["special_tokens_map.json"],
        "preprocessor_config.json": json.dumps(image).encode(),
        "processor_config.json": b'{"processor_class": "JanusProcessor", "num_image_tokens": 16}',
        "tokenizer_config.json": json.dumps({"extra_special_tokens": extra}).encode(),
    }
    processor = Processor(files)
    assert processor(QUESTION).input_ids.tolist() == Processor(released)(QUESTION).input_ids.tolist()
    other = {**extra, "boi_token": "<image_beg>"}
    files["tokenizer_config.json"] = json.dumps({"model_specific_special_tokens": other}).encode()
    assert read_processor_config(files).image_start_tag == "<image_beg>"
