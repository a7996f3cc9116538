"""The small files beside the weights, rewritten for either layout; `processor_config` reads them."""

import json
from collections.abc import Mapping
from typing import Any

from janus.weights.names import Layout
from janus.weights.processor_config import (
    BICUBIC,
    BOS_TOKEN,
    EOS_TOKEN,
    IMAGE_TAG,
    JANUS_PRO_ROLES,
    JANUS_ROLES,
    PAD_TOKEN,
    SIDE_FILES,
    ProcessorConfig,
    has_pro_roles,
    read_added_tokens,
    read_object,
    read_processor_config,
    read_special_tokens,
)

TRANSFORMERS_TOKENIZER_KEYS = frozenset(
    [
        "image_token",
        "boi_token",
        "eoi_token",
        "extra_special_tokens",
        "model_specific_special_tokens",
        "backend",
        "is_local",
        "local_files_only",
        "processor_class",
    ]
)
# A content is a string or parts: images stand on lines of their own, texts are joined by a space.
CHAT_TEMPLATE = """\
{%- macro write(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if not loop.first -%}
{{- "\\n" if "image" in (part["type"], loop.previtem["type"]) else " " -}}
{%- endif -%}
{{- "IMAGE" if part["type"] == "image" else part["text"] -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- set text = write(message["content"]) | trim -%}
{%- if message["role"] == "system" -%}{{- text + "\\n\\n" if text -}}
{%- else -%}
{{- ("USER" if message["role"] == "user" else "ASSISTANT") + (": " if text else ":") + text -}}
{%- if text and (not loop.last or add_generation_prompt or message["role"] != "user") -%}
{{- "\\n\\n" if message["role"] == "user" else "<｜end▁of▁sentence｜>" -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "ASSISTANT:" -}}{%- endif -%}
"""


def side_layout(files: Mapping[str, bytes], *, where: str = "the checkpoint") -> Layout:
    """Which layout the processor's files have."""
    processor = read_object(files, "processor_config.json", where).values
    image = read_object(files, "preprocessor_config.json", where).values
    ported = processor.get("processor_class") == "JanusProcessor" or "image_processor" in processor
    return "transformers" if ported or ("size" in image and "image_size" not in image) else "deepseek"


def processor_side_files(
    config: ProcessorConfig, files: Mapping[str, bytes], layout: Layout
) -> dict[str, bytes]:
    """The side files to write for `layout`, given those of the source checkpoint.

    Files that are in this layout already and say what `config` says are returned as they are.
    """
    if layout not in ("deepseek", "transformers"):
        raise ValueError(f"layout is {layout!r}: use deepseek or transformers")
    written = {name: files[name] for name in SIDE_FILES if name in files}
    stated = any(name in files for name in ("processor_config.json", "preprocessor_config.json"))
    same_layout = stated and side_layout(files) == layout
    if same_layout and read_processor_config(files) == config:
        return written
    written |= _deepseek_processor(config) if layout == "deepseek" else _transformers_processor(config)
    if same_layout or not _has_tokenizer(files):
        return written
    if layout == "transformers":
        return written | _transformers_tokenizer(config, files)
    # A template of somebody's own stays beside the released files; ours can be written again.
    if written.get("chat_template.jinja") == _chat_template(config, files):
        del written["chat_template.jinja"]
    return written | _deepseek_tokenizer(files)


def convert_side_files(files: Mapping[str, bytes], layout: Layout) -> dict[str, bytes]:
    """A checkpoint's side files for `layout`; as they are where none of them describes a processor."""
    if "processor_config.json" not in files and "preprocessor_config.json" not in files:
        return {name: files[name] for name in SIDE_FILES if name in files}
    return processor_side_files(read_processor_config(files), files, layout)


def image_token_id(files: Mapping[str, bytes]) -> int | None:
    """The id of the image placeholder; None where the files hold no tokenizer, or one that lacks it."""
    if not _has_tokenizer(files):
        return None
    tag = IMAGE_TAG
    if "processor_config.json" in files or "preprocessor_config.json" in files:
        tag = read_processor_config(files).image_tag
    return _token_ids(files).get(tag)


def _has_tokenizer(files: Mapping[str, bytes]) -> bool:
    return "tokenizer.json" in files or "tokenizer.model" in files


def _dump(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _image_values(config: ProcessorConfig) -> dict[str, Any]:
    return {
        **config.extra_image,
        "background_color": list(config.background),
        "do_normalize": config.do_normalize,
        "image_mean": config.image_mean,
        "image_std": config.image_std,
        "min_size": config.min_size,
        "rescale_factor": config.rescale_factor,
    }


def _processor_values(config: ProcessorConfig) -> dict[str, Any]:
    values = {
        **config.extra_processor,
        "image_tag": config.image_tag,
        "image_start_tag": config.image_start_tag,
        "image_end_tag": config.image_end_tag,
        "num_image_tokens": config.num_image_tokens,
        "sft_format": config.sft_format,
    }
    if config.image_generation_tag is not None:
        values["image_gen_tag"] = config.image_generation_tag
    return values


def _deepseek_processor(config: ProcessorConfig) -> dict[str, bytes]:
    names = {"image_processor_type": "VLMImageProcessor", "processor_class": "VLChatProcessor"}
    defaults = {"add_special_token": False, "ignore_id": -100, "mask_prompt": True}
    processor = defaults | _processor_values(config) | {"processor_class": "VLChatProcessor"}
    image = _image_values(config) | names | {"image_size": config.image_size}
    return {"preprocessor_config.json": _dump(image), "processor_config.json": _dump(processor)}


def _transformers_processor(config: ProcessorConfig) -> dict[str, bytes]:
    """Flat files, which versions 4 and 5 both read; tags and the template's name are kept as further keys."""
    size = {"height": config.image_size, "width": config.image_size}
    steps = {"do_resize": True, "do_rescale": True, "do_pad": True, "resample": BICUBIC, "size": size}
    names = {"image_processor_type": "JanusImageProcessor", "processor_class": "JanusProcessor"}
    processor = (
        {"use_default_system_prompt": True}
        | _processor_values(config)
        | {"processor_class": "JanusProcessor"}
    )
    image = _image_values(config) | steps | names
    return {"preprocessor_config.json": _dump(image), "processor_config.json": _dump(processor)}


def _token_ids(files: Mapping[str, bytes]) -> dict[str, int]:
    """Every token of the vocabulary with its id."""
    if "tokenizer.json" in files:
        values = read_object(files, "tokenizer.json").values
        try:
            listed = values["model"]["vocab"]
            # Unigram models list [piece, score] pairs instead of a mapping.
            pieces = listed if isinstance(listed, dict) else {pair[0]: i for i, pair in enumerate(listed)}
            return pieces | {token["content"]: token["id"] for token in values.get("added_tokens") or []}
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                "the checkpoint's tokenizer.json holds no vocabulary: download it again"
            ) from error
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=files["tokenizer.model"])
    known = {model.id_to_piece(index): index for index in range(model.get_piece_size())}
    return known | read_added_tokens(files)


def _transformers_tokenizer(config: ProcessorConfig, files: Mapping[str, bytes]) -> dict[str, bytes]:
    ids, special = _token_ids(files), read_special_tokens(files)
    bos, eos = special.bos or BOS_TOKEN, special.eos or EOS_TOKEN
    pad = special.pad or (PAD_TOKEN if PAD_TOKEN in ids else eos)
    for token in (bos, eos, pad, config.image_tag, config.image_start_tag, config.image_end_tag):
        if token not in ids:
            raise ValueError(f"the tokenizer has no token {token!r}: transformers' layout needs it")
    tags = {
        "image_token": config.image_tag,
        "boi_token": config.image_start_tag,
        "eoi_token": config.image_end_tag,
    }
    stated = dict(read_object(files, "tokenizer_config.json").values)
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "processor_class": "JanusProcessor"}
    values = stated | names | tags | {"extra_special_tokens": tags}
    written: dict[str, bytes] = {}
    if "tokenizer.json" in files:
        # The file's own pipeline: what LlamaTokenizer would build differs (its spaces, its BOS).
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
        written["tokenizer.json"] = _with_bos(files["tokenizer.json"], bos, ids[bos])
    written["tokenizer_config.json"] = _dump(values)
    template = _chat_template(config, files)
    if template is not None and "chat_template.jinja" not in files and "chat_template.json" not in files:
        written["chat_template.jinja"] = template
    generation_file = read_object(files, "generation_config.json")
    generation = dict(generation_file.values)
    further = dict(generation_file.section("generation_kwargs").values)
    token_ids = {"bos_token_id": ids[bos], "eos_token_id": ids[eos], "pad_token_id": ids[pad]}
    # transformers reads the image's start token from the one place or the other, by version.
    start = {"boi_token_id": ids[config.image_start_tag]}
    nested = {"generation_kwargs": further | start}
    written["generation_config.json"] = _dump({"guidance_scale": 5} | generation | token_ids | start | nested)
    return written


def _with_bos(content: bytes, bos: str, bos_id: int) -> bytes:
    """tokenizer.json as it is where its post-processor adds BOS, else with one that does.

    The released code adds BOS whatever the file says; transformers 5 does only what the file says.
    """
    values = json.loads(content)
    if bos in json.dumps(values.get("post_processor"), ensure_ascii=False):
        return content
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
    return json.dumps(values, ensure_ascii=False).encode()


def _deepseek_tokenizer(files: Mapping[str, bytes]) -> dict[str, bytes]:
    stated = dict(read_object(files, "tokenizer_config.json").values)
    values = {key: value for key, value in stated.items() if key not in TRANSFORMERS_TOKENIZER_KEYS}
    written = {"tokenizer_config.json": _dump(values | {"tokenizer_class": "LlamaTokenizer"})}
    special = read_special_tokens(files)
    if special.additional is None:
        listed = stated.get("extra_special_tokens")
        additional = list(listed) if isinstance(listed, list) else []
        # Without the map the vocabulary alone decides the roles; with it, it must list them.
        ids = _token_ids(files)
        additional += [role for role in JANUS_PRO_ROLES if role in ids and role not in additional]
        named = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
        tokens = {name: token for name, token in named.items() if token is not None}
        written["special_tokens_map.json"] = _dump({**tokens, "additional_special_tokens": additional})
    return written


def _chat_template(config: ProcessorConfig, files: Mapping[str, bytes]) -> bytes | None:
    """The template as transformers wants it, in jinja; None for the formats that no released model uses."""
    if not config.sft_format.startswith("deepseek"):
        return None
    pro = has_pro_roles(_token_ids(files), read_special_tokens(files).additional)
    user, assistant = JANUS_PRO_ROLES if pro else JANUS_ROLES
    replaced = CHAT_TEMPLATE.replace("USER", user).replace("ASSISTANT", assistant)
    return replaced.replace("IMAGE", config.image_tag).encode()
