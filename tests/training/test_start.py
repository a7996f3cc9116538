"""What a run begins with: random weights of a seed, and parts of published weights, each read strictly."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from janus.config import JanusConfig
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.vq import VQ
from janus.processing.processor import Processor
from janus.training.other_models import FLOW_VISION, LANGUAGE, VISION, fill_part
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import Data, Optimizer, Ratio, Source, Start
from janus.training.start import (
    blank,
    describe,
    start_config,
    start_janus,
    start_processor,
    start_vq,
    with_defaults,
)
from janus.training.vq_files import load_vq, save_vq
from janus.weights.names import source
from janus.weights.processor_config import read_generation_defaults
from janus.weights.save import named_tensors

CPU = torch.device("cpu")
Begin = Callable[..., Janus]


@pytest.fixture
def config(model: Janus) -> JanusConfig:
    return replace(model.config, extra={})


@pytest.fixture
def recipe(config: JanusConfig, checkpoint: str) -> Recipe:
    return Recipe(
        task="janus",
        model=Start(architecture=config, processor=checkpoint),
        train=("language",),
        data=Data(sources=(Source(task="text", path="texts.jsonl"),), ratio=Ratio(text=1)),
        optimizer=Optimizer(lr=1e-3),
        steps=10,
        batch=2,
        precision="float32",
    )


@pytest.fixture
def begin(recipe: Recipe, reads: Processor) -> Begin:
    def begin(**start: Any) -> Janus:
        return start_janus(replace(recipe, model=replace(recipe.model, **start)), reads, CPU)

    return begin


def published(model: Janus, part: str, stem: str) -> dict[str, Tensor]:
    """A part of a model by its published names."""
    names = {
        name
        for own in model.state_dict()
        if own.startswith(f"{part}.")
        for name in source(own, "deepseek").names
    }
    return {
        name.removeprefix(stem): tensor.clone()
        for name, tensor in named_tensors(model, "deepseek").items()
        if name in names
    }


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, right.state_dict()[name]) for name, tensor in left.state_dict().items())


def test_random_weights_are_of_the_seed_and_torchs_own_numbers_stay(recipe: Recipe, reads: Processor) -> None:
    state = torch.get_rng_state()
    one, again = (start_janus(recipe, reads, CPU) for _ in range(2))
    other = start_janus(replace(recipe, seed=1), reads, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one, again)
    assert not same(one, other)
    assert one.files == reads.files
    assert one.dtype == torch.float32
    assert start_janus(replace(recipe, precision="bfloat16"), reads, CPU).dtype == torch.bfloat16


def test_what_adds_up_over_layers_begins_smaller(begin: Begin, config: JanusConfig) -> None:
    model = begin()
    block, width = model.language.layers[0], config.language.width
    bound = width**-0.5  # of a linear layer's uniform weights
    assert block.attention.qkv.weight.abs().max() > 0.9 * bound
    assert block.attention.o_proj.weight.abs().max() <= bound * (2 * config.language.layers) ** -0.5
    assert 0.018 < model.language.embed.weight.std() < 0.022


def test_positions_of_a_vision_tower_do_not_drown_in_patches(begin: Begin, config: JanusConfig) -> None:
    vision, width = begin().vision, config.vision.width
    side = config.vision.patch_size
    patch = (3 * side**2) ** -0.5
    # A tenth is four deviations of what 768 random numbers give.
    assert vision.pos_embed.std().item() == pytest.approx(0.25, rel=0.1)
    # Whatever its width, by a patch that is all red, as pixels are seen.
    red = torch.tensor([0.8, -0.8, -0.8]).view(3, 1, 1).expand(3, side, side)
    assert 0.2 < vision.pos_embed.std() / vision.patch_embed(red[None]).std() < 0.6
    assert vision.patch_embed.weight.std().item() == pytest.approx(patch, rel=0.1)
    for block in vision.blocks:
        for weight, outputs in (
            (block.attn.qkv.weight, width),
            (block.attn.proj.weight, width),
            (block.mlp.fc1.weight, config.vision.mlp_width),
        ):
            bound = (6 / (width + outputs)) ** 0.5
            assert 0.9 * bound < weight.abs().max() <= bound
    assert not any(bias.any() for name, bias in vision.named_parameters() if name.endswith("bias"))


def test_a_processor_is_made_of_a_worlds_sentences(config: JanusConfig) -> None:
    sizes = replace(config, language=replace(config.language, vocabulary=400))
    made = start_processor(Start(architecture=sizes, world="shapes"))
    assert made.config.image_size == config.vision.image_size
    assert made.config.num_image_tokens == config.vision.tokens
    assert made.tokenizer.largest_id == 399
    assert made.files == start_processor(Start(architecture=sizes, world="shapes")).files


def test_a_processor_states_what_to_draw_with(reads: Processor) -> None:
    stated = with_defaults(reads, 2.5, 0.25)
    assert read_generation_defaults(stated.files) == {"guidance": 2.5, "temperature": 0.25}
    assert {name for name in stated.files if stated.files[name] != reads.files.get(name)} == {
        "generation_config.json"
    }


def test_a_checkpoint_is_read_in_the_recipes_precision(
    recipe: Recipe, reads: Processor, checkpoint: str, model: Janus
) -> None:
    start = Start(checkpoint=checkpoint)
    sft = replace(recipe, task="sft", model=start, data=replace(recipe.data, ratio=None))
    assert same(start_janus(sft, reads, CPU), model)
    assert start_config(sft.model) == model.config
    assert start_processor(start).files == reads.files


def test_a_language_model_of_safetensors(begin: Begin, model: Janus, tmp_path: Path) -> None:
    given = published(model, "language", LANGUAGE)
    assert "model.layers.0.self_attn.q_proj.weight" in given
    assert "lm_head.weight" in given
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, tmp_path / "model.safetensors")
    filled = begin(language=str(tmp_path))
    assert same(filled.language, model.language)
    assert not same(filled.image_head, model.image_head)


def test_a_vision_tower_of_timm(begin: Begin, model: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    given = published(model, "vision", VISION)
    assert "patch_embed.proj.weight" in given
    given["attn_pool.latent"] = torch.zeros(1, 1, 48)  # the pooling head, which nothing here computes with
    asked = []

    def create_model(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return SimpleNamespace(state_dict=lambda: given)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    filled = begin(vision="vit_tiny_siglip")
    assert same(filled.vision, model.vision)
    assert asked == [("vit_tiny_siglip", {"pretrained": True, "num_classes": 0})]


def test_timms_own_siglip(model: Janus) -> None:
    """Its names and its numbers, where timm is installed: of random weights, and of fewer blocks."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_base_patch16_siglip_224", pretrained=False, num_classes=0, depth=2).eval()
    vision = replace(model.config.vision, image_size=224, patch_size=16, width=768, layers=2, heads=12)
    adapter = replace(model.config.vision_adapter, input_width=768)
    ours = Janus(replace(model.config, vision=vision, vision_adapter=adapter)).eval()
    fill_part(ours, "vision", theirs.state_dict(), VISION)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        # The same operations, which torch may order otherwise.
        torch.testing.assert_close(ours.vision(pixels), theirs.forward_features(pixels), rtol=0, atol=1e-4)


def test_parts_of_a_flow_are_read_by_its_own_names(flow: JanusFlow, fresh_flow: JanusFlow) -> None:
    named = named_tensors(flow, "deepseek")
    for part, stem in (("vision", FLOW_VISION), ("language", LANGUAGE)):
        given = {name.removeprefix(stem): each for name, each in named.items() if name.startswith(stem)}
        owner = fresh_flow.get_submodule(part)
        for weight in owner.parameters():
            weight.data.zero_()
        fill_part(fresh_flow, part, given, stem)
        assert same(owner, flow.get_submodule(part))
        with pytest.raises(ValueError, match=f"for {part} do not fit its sizes: unexpected extra"):
            fill_part(fresh_flow, part, {**given, "extra": torch.zeros(1)}, stem)


def test_a_flow_sees_and_speaks_with_what_a_janus_has_learned(
    recipe: Recipe, flow: JanusFlow, flow_reads: Processor, model: Janus, checkpoint: str
) -> None:
    sizes = replace(flow.config, extra={}, vision=model.config.vision, language=model.config.language)
    begun = replace(recipe, model=Start(architecture=sizes, processor=checkpoint, backbone=checkpoint))
    alone = replace(recipe, model=Start(architecture=sizes, processor=checkpoint))
    filled, random = (start_janus(each, flow_reads, CPU) for each in (begun, alone))
    assert same(filled.vision, model.vision)
    assert same(filled.language, model.language)
    assert not same(random.language, model.language)
    assert isinstance(filled, JanusFlow)
    assert isinstance(random, JanusFlow)
    assert same(filled.decoder, random.decoder)


def test_a_backbone_of_other_sizes_is_refused(begin: Begin, config: JanusConfig, checkpoint: str) -> None:
    sizes = replace(config, language=replace(config.language, vocabulary=400))
    with pytest.raises(ValueError, match=r"has a language of vocabulary \d+, and .* wants vocabulary 400"):
        begin(architecture=sizes, backbone=checkpoint)


def test_a_backbone_that_learned_other_words_is_refused(
    recipe: Recipe, reads: Processor, config: JanusConfig, checkpoint: str
) -> None:
    description = json.loads(reads.files["tokenizer.json"])
    words = description["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    otherwise = Processor({**reads.files, "tokenizer.json": json.dumps(description).encode()})
    begun = replace(recipe, model=Start(architecture=config, processor=checkpoint, backbone=checkpoint))
    start_janus(begun, reads, CPU)
    told = rf"'b' is token {words['b']} of .* and {words['a']} of .*: give model.processor ="
    with pytest.raises(ValueError, match=told):
        start_janus(begun, otherwise, CPU)


def test_timm_that_is_absent_or_fails_is_told(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"'vit' is of timm: pip install timm"):
        begin(vision="vit")

    def create_model(name: str, **options: Any) -> Any:
        raise RuntimeError("Unknown model\nand more")

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    with pytest.raises(ValueError, match=r"cannot be had from timm \(RuntimeError: Unknown model\)"):
        begin(vision="vit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.pop("norm.weight"), "missing norm.weight: give the sizes"),
        (lambda given: given.update(extra=torch.zeros(1)), "unexpected extra: give the sizes"),
        (
            lambda given: given.update({"norm.bias": torch.zeros(3)}),
            r"norm.bias is \(3,\), and .* wants \(48,\)",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, fresh: Janus
) -> None:
    given = published(fresh, "vision", VISION)
    change(given)
    with pytest.raises(ValueError, match=message):
        fill_part(fresh, "vision", given, VISION)


def test_a_tokenizer_by_itself_and_of_a_whole_model(
    begin: Begin, recipe: Recipe, model: Janus, checkpoint: str, tmp_path: Path
) -> None:
    save_vq(model.vq, tmp_path)
    for path in (str(tmp_path), checkpoint):
        assert same(load_vq(path), model.vq)
        assert same(begin(vq=path).vq, model.vq)
    other = VQ(model.config.vq)
    save_vq(other, tmp_path / "other")
    replaced = begin(architecture=None, checkpoint=checkpoint, vq=str(tmp_path / "other"))
    assert same(replaced.vq, other)
    assert same(replaced.vision, begin(architecture=None, checkpoint=checkpoint).vision)
    filled = begin(vq=str(tmp_path), code_embedding="codebook")
    expected = torch.nn.functional.normalize(model.vq.codebook, dim=1)
    assert torch.equal(filled.code_embedding.weight, expected)
    start = Start(architecture=model.config.vq, vq=str(tmp_path))
    vq = replace(recipe, task="vq", train=("decoder",), model=start, data=drawings())
    assert start_config(Start(checkpoint=str(tmp_path)), "vq") == model.config.vq
    assert same(start_vq(vq, CPU), model.vq)


def drawings() -> Data:
    return Data(sources=(Source(task="drawing", path="rows.jsonl"),))


def test_a_tokenizer_of_other_sizes_or_damaged_is_refused(model: Janus, tmp_path: Path) -> None:
    save_vq(model.vq, tmp_path)
    with pytest.raises(ValueError, match="differs from the architecture in codes: give its sizes"):
        load_vq(tmp_path, replace(model.config.vq, codes=99))
    for name, content in (("vq.json", b"{"), ("vq.json", b'"Janus-Pro-1B"'), ("vq.safetensors", b"no")):
        save_vq(model.vq, tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read") as caught:
            load_vq(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_model_is_described_without_its_weights(model: Janus) -> None:
    description = describe(model)
    made = blank(description, torch.bfloat16, CPU)
    assert made.config == model.config
    # What says nothing to this library survives a run.
    assert made.config.extra["deepseek"]["transformers_version"] == "4.33.1"
    assert made.files == model.files
    assert {name: tensor.shape for name, tensor in made.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert made.dtype == torch.bfloat16
    assert not any(tensor.is_meta for tensor in made.state_dict().values())
