"""The names of a checkpoint's tensors: one table per layout, from this library's names to the layout's.

In a pattern `{}` stands for a number and a trailing `*` for all that follows; the first row that fits wins.
The way back is derived, never written: a model knows its own names, so `sources` tells every name that its
checkpoint must hold. "deepseek" is the released layout, "transformers" that of its
`JanusForConditionalGeneration`; "deepseek_flow" are the released layout's names in a JanusFlow, which
transformers does not have.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from janus.config import AnyConfig, JanusFlowConfig, VisionConfig

Layout = Literal["deepseek", "transformers"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Naming = Literal["deepseek", "transformers", "deepseek_flow"]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Several names in `theirs` are one tensor here, joined along its first axis. `squeeze`: the leading axis of
    size 1 that the tensor has here is missing there. `renumber` turns the last number here into the one
    there.
    """

    ours: str
    theirs: str | tuple[str, ...]
    squeeze: bool = False
    renumber: Callable[[int], int] = int


@dataclass(frozen=True)
class Source:
    """Where one of the model's tensors is found: the names that make it up, in order."""

    names: tuple[str, ...]
    squeeze: bool = False


_LLAMA_LAYER: tuple[tuple[str, str | tuple[str, ...]], ...] = (
    ("input_norm.*", "input_layernorm.*"),
    ("attention.qkv.*", ("self_attn.q_proj.*", "self_attn.k_proj.*", "self_attn.v_proj.*")),
    ("attention.*", "self_attn.*"),
    ("mlp_norm.*", "post_attention_layernorm.*"),
    ("mlp.gate_up.*", ("mlp.gate_proj.*", "mlp.up_proj.*")),
    ("mlp.*", "mlp.*"),
)


def _language_layers(stem: str) -> tuple[Row, ...]:
    return tuple(
        Row(
            f"language.layers.{{}}.{ours}",
            stem + theirs if isinstance(theirs, str) else tuple(stem + part for part in theirs),
        )
        for ours, theirs in _LLAMA_LAYER
    )


_DEEPSEEK_LANGUAGE = (
    Row("language.embed.*", "language_model.model.embed_tokens.*"),
    *_language_layers("language_model.model.layers.{}."),
    Row("language.norm.*", "language_model.model.norm.*"),
    Row("language.head.*", "language_model.lm_head.*"),
)

DEEPSEEK = (
    Row("vision.patch_embed.*", "vision_model.vision_tower.patch_embed.proj.*"),
    Row("vision.*", "vision_model.vision_tower.*"),
    Row("vision_adapter.*", "aligner.layers.*"),
    Row("vq.encoder.levels.{}.resample.*", "gen_vision_model.encoder.conv_blocks.{}.downsample.*"),
    Row("vq.decoder.levels.{}.resample.*", "gen_vision_model.decoder.conv_blocks.{}.upsample.*"),
    Row("vq.encoder.levels.{}.*", "gen_vision_model.encoder.conv_blocks.{}.*"),
    Row("vq.decoder.levels.{}.*", "gen_vision_model.decoder.conv_blocks.{}.*"),
    Row("vq.codebook", "gen_vision_model.quantize.embedding.weight"),
    Row("vq.*", "gen_vision_model.*"),
    Row("code_embedding.*", "gen_embed.*"),
    Row("code_adapter.*", "gen_aligner.layers.*"),
    Row("image_head.up.*", "gen_head.output_mlp_projector.*"),
    Row("image_head.out.*", "gen_head.vision_head.*"),
    *_DEEPSEEK_LANGUAGE,
)

_CONVNEXT_BLOCK = (
    ("expand.*", "channelwise_linear_1.*"),
    ("response_norm.*", "channelwise_norm.*"),
    ("contract.*", "channelwise_linear_2.*"),
    ("modulation.*", "cond_embeds_mapper.*"),
    ("*", "*"),
)

DEEPSEEK_FLOW = (
    Row("vision.patch_embed.*", "vision_und_enc_model.vision_tower.patch_embed.proj.*"),
    Row("vision.*", "vision_und_enc_model.vision_tower.*"),
    Row("vision_adapter.*", "vision_und_enc_aligner.*"),
    Row("begin_embedding", "beg_of_und_embed"),
    *(
        Row(f"{coder}.blocks.{{}}.{ours}", f"vision_gen_{theirs}_model.mid_block.res_blocks.{{}}.{leaf}")
        for coder, theirs in (("encoder", "enc"), ("decoder", "dec"))
        for ours, leaf in _CONVNEXT_BLOCK
    ),
    Row("encoder.time.*", "vision_gen_enc_model.time_embed.*"),
    Row("encoder.*", "vision_gen_enc_model.*"),
    Row("decoder.out_norm.*", "vision_gen_dec_model.out_convs.0.norm.*"),
    Row("decoder.out_conv.*", "vision_gen_dec_model.out_convs.0.unpatch_conv.*"),
    Row("decoder.*", "vision_gen_dec_model.*"),
    Row("latent_adapter.*", "vision_gen_enc_aligner.*"),
    Row("velocity_norm.*", "vision_gen_dec_aligner_norm.*"),
    Row("velocity_adapter.*", "vision_gen_dec_aligner.*"),
    *_DEEPSEEK_LANGUAGE,
)


def _projections(leaf: str) -> tuple[str, ...]:
    return tuple(f"model.vision_model.encoder.layers.{{}}.self_attn.{part}_proj.{leaf}" for part in "qkv")


def _hidden_layer(index: int) -> int:
    """An adapter's linear layers are the even indices here; there the first has a name of its own."""
    return index // 2 - 1


TRANSFORMERS = (
    Row("vision.patch_embed.*", "model.vision_model.embeddings.patch_embedding.*"),
    Row("vision.pos_embed", "model.vision_model.embeddings.position_embedding.weight", squeeze=True),
    Row("vision.blocks.{}.norm1.*", "model.vision_model.encoder.layers.{}.layer_norm1.*"),
    Row("vision.blocks.{}.norm2.*", "model.vision_model.encoder.layers.{}.layer_norm2.*"),
    Row("vision.blocks.{}.attn.qkv.weight", _projections("weight")),
    Row("vision.blocks.{}.attn.qkv.bias", _projections("bias")),
    Row("vision.blocks.{}.attn.proj.*", "model.vision_model.encoder.layers.{}.self_attn.projection_layer.*"),
    Row("vision.blocks.{}.mlp.*", "model.vision_model.encoder.layers.{}.mlp.*"),
    Row("vision.norm.*", "model.vision_model.post_layernorm.*"),
    Row("vision_adapter.0.*", "model.aligner.fc1.*"),
    Row("vision_adapter.{}.*", "model.aligner.hidden_layers.{}.*", renumber=_hidden_layer),
    Row("vision_adapter.*", "model.aligner.fc1.*"),
    *(
        Row(f"vq.{coder}.{ours}", f"model.vqmodel.{coder}.{theirs}")
        for coder, levels, resample in (("encoder", "down", "downsample"), ("decoder", "up", "upsample"))
        for ours, theirs in (
            ("levels.{}.res.{}.*", f"{levels}.{{}}.block.{{}}.*"),
            ("levels.{}.resample.*", f"{levels}.{{}}.{resample}.*"),
            ("levels.{}.*", f"{levels}.{{}}.*"),
            ("mid.0.*", "mid.block_1.*"),
            ("mid.1.*", "mid.attn_1.*"),
            ("mid.2.*", "mid.block_2.*"),
        )
    ),
    Row("vq.codebook", "model.vqmodel.quantize.embedding.weight"),
    Row("vq.*", "model.vqmodel.*"),
    Row("code_embedding.*", "model.generation_embeddings.*"),
    Row("code_adapter.0.*", "model.generation_aligner.fc1.*"),
    Row("code_adapter.{}.*", "model.generation_aligner.hidden_layers.{}.*", renumber=_hidden_layer),
    Row("code_adapter.*", "model.generation_aligner.fc1.*"),
    Row("image_head.up.*", "model.generation_head.proj_out.*"),
    Row("image_head.out.*", "model.generation_head.vision_head.*"),
    Row("language.embed.*", "model.language_model.embed_tokens.*"),
    *_language_layers("model.language_model.layers.{}."),
    Row("language.norm.*", "model.language_model.norm.*"),
    Row("language.head.*", "lm_head.*"),
)

TABLES: dict[Naming, tuple[Row, ...]] = {
    "deepseek": DEEPSEEK,
    "transformers": TRANSFORMERS,
    "deepseek_flow": DEEPSEEK_FLOW,
}

# What checkpoints hold and no model of the family computes with: SigLIP's pooling head, the VQ tokenizer's
# training statistics, and buffers of position numbers that some versions of transformers saved.
DROPPED: dict[Naming, tuple[str, ...]] = {
    "deepseek": (
        "vision_model.vision_tower.attn_pool.*",
        "gen_vision_model.quantize.codebook_used",
        "language_model.model.layers.{}.self_attn.rotary_emb.inv_freq",
    ),
    "transformers": (
        "model.vision_model.embeddings.position_ids",
        "model.language_model.layers.{}.self_attn.rotary_emb.inv_freq",
    ),
    "deepseek_flow": (
        "vision_und_enc_model.vision_tower.attn_pool.*",
        "language_model.model.layers.{}.self_attn.rotary_emb.inv_freq",
    ),
}

# The vision tower's blocks, which a checkpoint may hold beyond those that `select_layer` builds.
VISION_BLOCK: dict[Naming, str] = {
    "deepseek": "vision_model.vision_tower.blocks.{}.*",
    "transformers": "model.vision_model.encoder.layers.{}.*",
    "deepseek_flow": "vision_und_enc_model.vision_tower.blocks.{}.*",
}


def match(pattern: str, name: str) -> re.Match[str] | None:
    """The numbers and the rest of `name`, as groups, where it fits the pattern."""
    expression = re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)")
    return re.fullmatch(expression, name)


def naming_of(config: AnyConfig, layout: Layout) -> Naming:
    """The names that a model of this config has in a layout. ValueError where the layout has none for it."""
    if not isinstance(config, JanusFlowConfig):
        return layout
    if layout != "deepseek":
        raise ValueError(f"the layout {layout} has no names for a JanusFlow: name the layout deepseek")
    return "deepseek_flow"


def source(name: str, naming: Naming) -> Source:
    """Where a checkpoint with these names keeps the model's tensor `name`."""
    for row in TABLES[naming]:
        found = match(row.ours, name)
        if found is None:
            continue
        parts = list(found.groups())
        numbers = [position for position, mark in enumerate(re.findall(r"\{\}|\*", row.ours)) if mark == "{}"]
        if numbers:
            parts[numbers[-1]] = str(row.renumber(int(parts[numbers[-1]])))
        patterns = (row.theirs,) if isinstance(row.theirs, str) else row.theirs
        return Source(tuple(pattern.replace("*", "{}").format(*parts) for pattern in patterns), row.squeeze)
    raise KeyError(f"no row of the {naming} table fits {name}")


def sources(names: Iterable[str], naming: Naming) -> dict[str, Source]:
    """Where each of the model's tensors is kept, by the model's own names."""
    return {name: source(name, naming) for name in names}


def is_dropped(name: str, naming: Naming, vision: VisionConfig) -> bool:
    """Whether a checkpoint may hold `name` although nothing computes with it.

    Of the vision tower these are the blocks above the one that is selected, and no others.
    """
    block = match(VISION_BLOCK[naming], name)
    if block is not None:
        return vision.depth <= int(block.group(1)) < vision.layers
    return any(match(pattern, name) for pattern in DROPPED[naming])
