"""What the small files beside the weights state about pictures, prompts and special tokens, in both layouts.

"deepseek" is the released layout; "transformers" what its Janus port writes, version 4 (flat) or 5 (nested).
Every reader takes the files' contents by name, as `read_side_files` gives them, and raises ValueError naming
file, key and value.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from janus.weights.json_object import JsonObject, parse_object

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)

# Names of tokens and roles where no file states them. The ids are always those of the checkpoint's own
# vocabulary.
IMAGE_TAG, IMAGE_START_TAG, IMAGE_END_TAG = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
JANUS_ROLES = ("User", "Assistant")
JANUS_PRO_ROLES = ("<|User|>", "<|Assistant|>")

# Defaults of the released code (and of transformers), for keys that a file leaves out.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
# The keys that are read or written; all others are carried along.
IMAGE_KEYS = frozenset(
    [
        "image_size",
        "size",
        "min_size",
        "image_mean",
        "image_std",
        "rescale_factor",
        "do_normalize",
        "background_color",
        "image_processor_type",
        "processor_class",
        "do_resize",
        "do_rescale",
        "do_pad",
        "resample",
    ]
)
PROCESSOR_KEYS = frozenset(
    [
        "num_image_tokens",
        "image_tag",
        "image_start_tag",
        "image_end_tag",
        "image_gen_tag",
        "sft_format",
        "add_special_token",
        "processor_class",
        "image_processor",
        "use_default_system_prompt",
    ]
)


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """What the processor's files state: sizes in pixels, mean and std of [0, 1] pixels, tags, template.

    `extra_image` and `extra_processor` hold the keys that nothing here reads; writing keeps them.
    """

    image_size: int
    min_size: int = 14
    image_mean: tuple[float, float, float] | None = CLIP_MEAN
    image_std: tuple[float, float, float] | None = CLIP_STD
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    num_image_tokens: int = 576
    image_tag: str = IMAGE_TAG
    image_start_tag: str = IMAGE_START_TAG
    image_end_tag: str = IMAGE_END_TAG
    image_generation_tag: str | None = None
    sft_format: str = "deepseek"
    extra_image: Mapping[str, Any] = field(default_factory=dict, hash=False)
    extra_processor: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def marks_start(self) -> bool:
        """Whether a picture's embeddings begin at its start token, as JanusFlow's do.

        Only its files name a token for generation; what they say of a picture's tokens is otherwise alike.
        """
        return self.image_generation_tag is not None

    @property
    def background(self) -> tuple[int, int, int]:
        """The 8-bit color of the margins, from the mean: the original ignores the file's own value."""
        red, green, blue = self.image_mean or (0.5, 0.5, 0.5)
        return int(red * 255), int(green * 255), int(blue * 255)


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Names of special tokens; None where no file states it (`additional`: no special_tokens_map.json)."""

    bos: str | None
    eos: str | None
    pad: str | None
    additional: tuple[str, ...] | None


def read_side_files(folder: str | PathLike[str]) -> dict[str, bytes]:
    """The contents of the side files in a folder. Raises FileNotFoundError where the folder is absent."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the folder that holds a checkpoint's files")
    return {
        name: (Path(folder) / name).read_bytes() for name in SIDE_FILES if (Path(folder) / name).is_file()
    }


def read_processor_config(files: Mapping[str, bytes], *, where: str = "the checkpoint") -> ProcessorConfig:
    """Read `preprocessor_config.json` and `processor_config.json` of either layout.

    Raises FileNotFoundError where a folder has neither, ValueError for what cannot be honored.
    """
    processor = read_object(files, "processor_config.json", where)
    image = read_object(files, "preprocessor_config.json", where)
    if "processor_config.json" not in files and "preprocessor_config.json" not in files:
        raise FileNotFoundError(
            f"{where} holds neither preprocessor_config.json nor processor_config.json: add them"
        )
    if processor.stated("image_processor"):
        image = processor.section("image_processor")
    _check_image_switches(image)
    mean, std = image.channels("image_mean", CLIP_MEAN), image.channels("image_std", CLIP_STD)
    normalize = image.flag("do_normalize", True)
    if std and 0 in std:
        raise image.fail("image_std", "must not hold 0")
    if normalize and (mean is None or std is None):
        name = "image_mean" if mean is None else "image_std"
        raise image.fail(name, "must be three numbers while do_normalize is true")
    processor.require("add_special_token", False, absent=False)
    tags = _transformers_tags(files, where)
    image_size, min_size = _image_size(image), image.whole("min_size", 14, least=1)
    if min_size > image_size:
        raise image.fail("min_size", f"must be at most image_size, {image_size}")
    return ProcessorConfig(
        image_size=image_size,
        min_size=min_size,
        image_mean=mean,
        image_std=std,
        rescale_factor=image.number("rescale_factor", 1 / 255),
        do_normalize=normalize,
        num_image_tokens=processor.whole("num_image_tokens", 576, least=1),
        image_tag=processor.token("image_tag") or tags.get("image_token") or IMAGE_TAG,
        image_start_tag=processor.token("image_start_tag") or tags.get("boi_token") or IMAGE_START_TAG,
        image_end_tag=processor.token("image_end_tag") or tags.get("eoi_token") or IMAGE_END_TAG,
        image_generation_tag=processor.token("image_gen_tag"),
        sft_format=processor.text("sft_format") or "deepseek",
        extra_image={key: value for key, value in image.values.items() if key not in IMAGE_KEYS},
        extra_processor={key: value for key, value in processor.values.items() if key not in PROCESSOR_KEYS},
    )


def read_special_tokens(files: Mapping[str, bytes], *, where: str = "the checkpoint") -> SpecialTokens:
    """BOS, EOS, PAD as named in special_tokens_map.json, else tokenizer_config.json; the declared others."""
    declared = read_object(files, "special_tokens_map.json", where)
    config = read_object(files, "tokenizer_config.json", where)
    bos, eos, pad = (
        declared.token(f"{n}_token") or config.token(f"{n}_token") for n in ("bos", "eos", "pad")
    )
    additional = None
    if "special_tokens_map.json" in files:
        additional = _token_names(declared, "additional_special_tokens")
    return SpecialTokens(bos=bos, eos=eos, pad=pad, additional=additional)


def has_pro_roles(vocabulary: Container[str], additional: Container[str] | None) -> bool:
    """Whether conversations use Janus-Pro's role tokens: known and, where there is a list, declared."""
    known = all(role in vocabulary for role in JANUS_PRO_ROLES)
    return known and (additional is None or JANUS_PRO_ROLES[0] in additional)


def read_added_tokens(files: Mapping[str, bytes], *, where: str = "the checkpoint") -> dict[str, int]:
    """Tokens and ids beside a vocabulary: added_tokens.json, and tokenizer_config's added_tokens_decoder."""
    listed = read_object(files, "added_tokens.json", where)
    config = read_object(files, "tokenizer_config.json", where)
    added: dict[str, int] = {}
    for token in listed.values:
        added[token] = listed.whole(token, 0, least=1)
    if "added_tokens_decoder" in config.values:
        decoder = config.section("added_tokens_decoder")
        for index in decoder.values:
            token_name = decoder.token(index)
            if not index.isdecimal() or token_name is None:
                raise decoder.fail(index, "must be a token's content under its id")
            added[token_name] = int(index)
    return added


def read_window(files: Mapping[str, bytes], *, where: str = "the checkpoint") -> int | None:
    """The most tokens that the model was made for (tokenizer_config's model_max_length), or None."""
    config = read_object(files, "tokenizer_config.json", where)
    value = config.values.get("model_max_length")
    # transformers writes 10^30 for "no limit", as a float or an int.
    if value is None or (isinstance(value, (int, float)) and value >= 10**12):
        return None
    return config.whole("model_max_length", 0, least=1)


def read_generation_defaults(files: Mapping[str, bytes], *, where: str = "the checkpoint") -> dict[str, Any]:
    """`guidance`, `temperature` and `steps` (of a flow) where generation_config.json states them."""
    config = read_object(files, "generation_config.json", where)
    names = {"guidance": "guidance_scale", "temperature": "temperature"}
    stated: dict[str, Any] = {
        name: config.number(key, 0) for name, key in names.items() if config.stated(key)
    }
    if stated.get("temperature", 0) < 0:
        raise config.fail("temperature", "must be at least 0")
    if config.stated("num_inference_steps"):  # as diffusers calls it
        stated["steps"] = config.whole("num_inference_steps", 0, least=1)
    return stated


def read_object(files: Mapping[str, bytes], name: str, where: str = "the checkpoint") -> JsonObject:
    """One of the files as a JSON object; an empty one where it is absent."""
    path = f"{where}/{name}"
    return JsonObject(parse_object(files[name], path) if name in files else {}, f"{path}: ")


def _check_image_switches(image: JsonObject) -> None:
    """transformers can switch steps off; the model has only seen pictures that went through all of them."""
    for key in ("do_resize", "do_rescale", "do_pad"):
        image.require(key, True, absent=True)
    image.require("resample", BICUBIC, absent=BICUBIC)


def _image_size(image: JsonObject) -> int:
    if "size" not in image.values or "image_size" in image.values:
        return image.whole("image_size", 0, least=1)
    if not isinstance(image.values["size"], dict):
        return image.whole("size", 0, least=1)
    size = image.section("size")
    height, width = (size.whole(key, 0, least=1) for key in ("height", "width"))
    if height != width:
        raise image.fail("size", "height and width must be equal")
    return height


def _transformers_tags(files: Mapping[str, bytes], where: str) -> dict[str, str]:
    """image_token, boi_token and eoi_token as transformers' tokenizers write them, at one of three places."""
    config = read_object(files, "tokenizer_config.json", where)
    places = [config]
    for key in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(config.values.get(key), dict):
            places.append(config.section(key))
    names = ("image_token", "boi_token", "eoi_token")
    return {name: text for place in places for name in names if (text := place.token(name))}


def _token_names(file: JsonObject, key: str) -> tuple[str, ...]:
    entries = file.values.get(key) or []
    if not isinstance(entries, list):
        raise file.fail(key, "must be a list")
    names: list[str] = []
    for entry in entries:
        name = entry.get("content") if isinstance(entry, dict) else entry
        if not isinstance(name, str):
            raise file.fail(key, "must hold strings, or objects with content")
        names.append(name)
    return tuple(names)
