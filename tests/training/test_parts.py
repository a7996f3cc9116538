"""The parts hold all of a model once, and freezing reaches those that it names and no other."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.quantized import make_quantized
from janus.models.vq import VQ
from janus.training.flow import add_alignment
from janus.training.parts import (
    FLOW_PARTS,
    FLOW_STAGE_1,
    FLOW_STAGE_2,
    FLOW_STAGE_3,
    PARTS,
    STAGE_1,
    STAGE_2,
    STAGE_3,
    VQ_PARTS,
    freeze,
    parameters,
    part_of,
    start_from_codebook,
    trained,
)


@pytest.fixture
def fresh(model: Janus) -> Janus:
    return copy.deepcopy(model)


def tied(model: Janus) -> Janus:
    config = replace(model.config, language=replace(model.config.language, tied_head=True))
    return Janus(config)


def test_parts_hold_every_parameter_once(fresh: Janus) -> None:
    for owner, parts in ((fresh, PARTS), (fresh.vq, VQ_PARTS)):
        found = [name for names in parameters(owner).values() for name in names]
        assert sorted(found) == sorted(name for name, _ in owner.named_parameters())
        assert set(parameters(owner)) == set(parts)
        assert all(parameters(owner).values())


def test_parts_of_a_flow_hold_every_parameter_once(flow: JanusFlow) -> None:
    """While it learns its projector is one more; the stages are the published ones."""
    fresh = copy.deepcopy(flow)
    add_alignment(fresh, 1, tokens=16)
    found = [name for names in parameters(fresh).values() for name in names]
    assert sorted(found) == sorted(name for name, _ in fresh.named_parameters())
    assert set(parameters(fresh)) == {*FLOW_PARTS, "alignment"}
    assert set(parameters(flow)) == set(FLOW_PARTS)
    assert set(FLOW_PARTS) - set(FLOW_STAGE_1) == {"vision", "embed", "language", "text_head"}
    assert set(FLOW_PARTS) - set(FLOW_STAGE_2) == {"vision"}
    assert set(FLOW_PARTS) == set(FLOW_STAGE_3)
    freeze(fresh, FLOW_STAGE_1)
    for part, weights in parameters(fresh).items():
        learns = part in (*FLOW_STAGE_1, "alignment")
        assert {weight.requires_grad for weight in weights.values()} == {learns}
    assert fresh.encoder.training
    assert not fresh.vision.training
    with pytest.raises(ValueError, match=r'^"alignment" is unknown'):
        freeze(fresh, ("alignment",))  # it always learns, and is named nowhere


def test_a_name_that_no_part_holds(fresh: Janus) -> None:
    with pytest.raises(KeyError, match=r"no part holds language\.other"):
        part_of("language.other", PARTS)


@pytest.mark.parametrize(
    ("stage", "frozen"),
    [
        (STAGE_1, {"vision", "vq", "embed", "language", "text_head"}),
        (STAGE_2, {"vision", "vq"}),
        (STAGE_3, {"vq"}),
    ],
    ids=["stage-1", "stage-2", "stage-3"],
)
def test_stages_are_the_published_ones(fresh: Janus, stage: tuple[str, ...], frozen: set[str]) -> None:
    assert set(PARTS) - set(stage) == frozen
    freeze(fresh, stage)
    for part, weights in parameters(fresh).items():
        assert {weight.requires_grad for weight in weights.values()} == {part in stage}
    assert fresh.vision.training == ("vision" in stage)
    assert fresh.language.layers[0].training == ("language" in stage)
    assert fresh.image_head.training
    assert not fresh.vq.training
    assert not fresh.vq.decoder.training


def test_freezing_again_forgets_what_was_before(fresh: Janus) -> None:
    freeze(fresh, STAGE_3)
    freeze(fresh, ("text_head",))
    assert list(trained(fresh)) == ["language.head.weight"]
    freeze(fresh, ())
    assert trained(fresh) == {}
    assert not fresh.training


def test_only_what_learns_changes(fresh: Janus) -> None:
    """A step of SGD on a loss that reaches all of stage 2's parts."""
    freeze(fresh, STAGE_2)
    before = {name: weight.detach().clone() for name, weight in fresh.named_parameters()}
    ids, codes = torch.arange(4)[None], torch.arange(3)[None]
    side = fresh.config.vision.image_size
    seen = fresh.encode_images(torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side))
    embeds = torch.cat([fresh.embed(ids), seen, fresh.embed_codes(codes)], dim=1)
    hidden = fresh.hidden_states(embeds)
    (fresh.text_logits(hidden).square().mean() + fresh.image_logits(hidden).square().mean()).backward()
    torch.optim.SGD(trained(fresh).values(), lr=1.0).step()
    changed = {name for name, weight in fresh.named_parameters() if not torch.equal(weight, before[name])}
    assert {part_of(name, PARTS) for name in changed} == set(STAGE_2)


def test_unknown_and_repeated_parts(fresh: Janus) -> None:
    with pytest.raises(ValueError, match=r'^"languag" is unknown: did you mean language\?$'):
        freeze(fresh, ("languag",))
    with pytest.raises(ValueError, match=rf'^"llm" is unknown: there are {", ".join(PARTS)}$'):
        freeze(fresh, ("llm",))
    with pytest.raises(ValueError, match=rf'^"head" is unknown: there are {", ".join(VQ_PARTS)}$'):
        freeze(fresh.vq, ("head",))
    with pytest.raises(ValueError, match=r'^"vision" is named twice: take one out$'):
        freeze(fresh, ("vision", "vision"))
    with pytest.raises(
        ValueError, match=r"^a Linear has no parts that are known: train a Janus, a JanusFlow, a VQ or a VAE$"
    ):
        freeze(nn.Linear(2, 2), ("weight",))  # type: ignore[arg-type]


def test_parts_of_the_tokenizer(fresh: Janus) -> None:
    vq: VQ = fresh.vq
    freeze(vq, ("decoder",))
    assert {name.split(".")[0] for name in trained(vq)} == {"post_quant_conv", "decoder"}
    assert vq.decoder.training
    assert not vq.encoder.training
    freeze(vq, ("codebook",))
    assert list(trained(vq)) == ["codebook"]


def test_a_tied_head_learns_with_the_word_table(model: Janus) -> None:
    fresh = tied(model)
    for one in ("embed", "text_head"):
        with pytest.raises(ValueError, match=f"^{one} is tied in this model: train both embed and text_head"):
            freeze(fresh, (one,))
    freeze(fresh, ("embed", "text_head"))
    assert list(trained(fresh)) == ["language.embed.weight"]
    freeze(fresh, ("language",))
    assert not fresh.language.head.weight.requires_grad


def test_a_quantized_part_cannot_learn(fresh: Janus) -> None:
    make_quantized(fresh, "int8")
    with pytest.raises(ValueError, match=r"^language is quantized and cannot learn: load the model unquant"):
        freeze(fresh, ("language",))
    freeze(fresh, ("vision_adapter",))
    assert {name.split(".")[0] for name in trained(fresh)} == {"vision_adapter"}


def test_a_part_without_parameters(model: Janus) -> None:
    width = model.config.language.width
    adapter = replace(model.config.vision_adapter, kind="identity", input_width=width, output_width=width)
    vision = replace(model.config.vision, width=width, heads=4)
    fresh = Janus(replace(model.config, vision=vision, vision_adapter=adapter))
    with pytest.raises(ValueError, match=r"^vision_adapter has no parameters in this model"):
        freeze(fresh, ("vision_adapter",))


def test_the_table_of_codes_may_begin_at_the_codebook(fresh: Janus) -> None:
    codebook = fresh.vq.codebook.detach().clone()
    start_from_codebook(fresh)
    assert torch.equal(fresh.code_embedding.weight, F.normalize(codebook, dim=1))
    with torch.no_grad():
        fresh.code_embedding.weight.zero_()
    assert torch.equal(fresh.vq.codebook, codebook)  # two tables still
