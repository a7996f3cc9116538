"""Recipes as data: what contradicts raises with its key, and what is written reads back equal."""

import re
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.config import FLOW_PRESETS, PRESETS
from janus.training.parts import FLOW_PARTS, FLOW_STAGE_3, PARTS, STAGE_2, VAE_PARTS, VQ_PARTS
from janus.training.recipe.fields import RecipeError, Section, build
from janus.training.recipe.file import dump, parse_recipe
from janus.training.recipe.learning import VAELearning, VQLearning
from janus.training.recipe.recipe import Recipe, differences
from janus.training.recipe.sections import (
    KINDS,
    Data,
    Optimizer,
    Ratio,
    Schedule,
    Source,
    Start,
)
from janus.training.vae import VAETraining
from janus.training.vq import VQTraining

JANUS: dict[str, Any] = {
    "task": "janus",
    "train": list(STAGE_2),
    "steps": 100,
    "batch": 16,
    "model": {"checkpoint": "runs/before"},
    "data": {
        "sources": [{"task": "text", "path": "a.jsonl"}, {"task": "drawing", "world": "shapes"}],
        "ratio": {"text": 1, "drawing": 4},
    },
    "optimizer": {"lr": 1e-4},
}
VQ: dict[str, Any] = {
    "task": "vq",
    "train": list(VQ_PARTS),
    "steps": 100,
    "batch": 16,
    "model": {"architecture": "Janus-Pro-1B"},
    "data": {"sources": [{"task": "drawing", "path": "a.jsonl"}]},
    "optimizer": {"lr": 1e-4},
}


FLOW: dict[str, Any] = {
    **JANUS,
    "train": list(FLOW_STAGE_3),
    "model": {"architecture": "JanusFlow-1.3B", "processor": "x", "vae": "runs/vae"},
    "flow": {"aligned_after": 3},
    "loss": {"alignment": 0.5},
}
VAE: dict[str, Any] = {
    **VQ,
    "task": "vae",
    "train": list(VAE_PARTS),
    "model": {"architecture": {"vae": {"channels": [32, 64]}}},
}


def changed(base: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """The tables with these keys instead, `section__key` being one inside a section; None takes a key out."""
    tables = {name: dict(each) if isinstance(each, dict) else each for name, each in base.items()}
    for name, value in keys.items():
        *outer, last = name.split("__")
        inner = tables
        for step in outer:
            inner = inner.setdefault(step, {})
        inner[last] = value
        if value is None:
            del inner[last]
    return tables


def test_a_recipe_is_frozen_and_keyword_only() -> None:
    recipe = build(Recipe, JANUS)
    with pytest.raises(FrozenInstanceError):
        recipe.steps = 1
    with pytest.raises(TypeError, match="positional"):
        Recipe("janus")  # type: ignore[misc]


def test_made_in_python_as_from_a_file() -> None:
    recipe = Recipe(
        train=STAGE_2,
        steps=100,
        batch=16,
        model=Start(checkpoint="runs/before"),
        data=Data(
            sources=(Source(task="text", path="a.jsonl"), Source(task="drawing", world="shapes")),
            ratio=Ratio(text=1, drawing=4),
        ),
        optimizer=Optimizer(lr=1e-4),
    )
    assert recipe == build(Recipe, JANUS)
    assert isinstance(recipe.optimizer.lr, float)


def test_a_mistake_in_python_names_its_key() -> None:
    with pytest.raises(ValueError, match=r"^lr: -1 is not a number above 0: give one$"):
        Optimizer(lr=-1)
    with pytest.raises(ValueError, match=r"^steps: 0 is not a whole number of at least 1: give one$"):
        replace(build(Recipe, JANUS), steps=0)


def test_whole_numbers_stand_for_floats_and_no_other_type_for_another() -> None:
    assert repr(Optimizer(lr=1).lr) == "1.0"
    for value in (True, "1e-4", None, float("nan"), float("inf"), 10**400):
        with pytest.raises(ValueError, match=r"^lr: .* is not a number above 0: give one$"):
            Optimizer(lr=value)
    for value in (1.0, "1", True, None):
        with pytest.raises(
            ValueError, match=r"^warmup: .* is not a whole number of at least 0: give one, or l"
        ):
            Schedule(warmup=value)  # type: ignore[arg-type]


def test_none_may_be_written_where_it_may_be() -> None:
    assert Optimizer(lr=1, clip="none").clip is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'^eps: "none" is not a number above 0'):
        Optimizer(lr=1, eps="none")  # type: ignore[arg-type]


SOURCE = {"task": "text", "path": "a"}
DRAWN: dict[str, Any] = {"task": "drawing", "world": "shapes"}
# By name: the recipe, the key that the error leads to, and how its text begins.
MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown": (changed(JANUS, stepz=1), "stepz", "is unknown: did you mean steps?"),
    "unknown-inside": (changed(JANUS, data__source=[]), "data.source", "is unknown: did you mean sources?"),
    "missing": (changed(JANUS, steps=None), "steps", "is missing: give a whole number of at least 1"),
    "missing-section": (changed(JANUS, optimizer=None), "optimizer", "is missing: give a table"),
    "section": (changed(JANUS, log=3), "log", "3 is not a table: give one"),
    "task": (
        changed(JANUS, task="januss"),
        "task",
        '"januss" is not "janus", "sft", "siglip", "vq" or "vae": did you',
    ),
    "bool": (
        changed(JANUS, compile="yes"),
        "compile",
        '"yes" is not true or false: give one, or leave it out',
    ),
    "text": (changed(JANUS, model__checkpoint=""), "model.checkpoint", '"" is not a text that is not empty'),
    "list": (changed(JANUS, train="vision"), "train", '"vision" is not a list, each a text'),
    "betas": (
        changed(JANUS, optimizer__betas=[0.9]),
        "optimizer.betas",
        "[0.9] is not a list of 2, each a num",
    ),
    "beta": (
        changed(JANUS, optimizer__betas=[0.9, 1]),
        "optimizer.betas.1",
        "1 is not a number of at least 0 ",
    ),
    "above": (changed(JANUS, ema=1.0), "ema", "1.0 is not a number of at least 0 and below 1: give one"),
    "seed": (changed(JANUS, seed=2**63), "seed", f"{2**63} is not a whole number from 0 to {2**63 - 1}"),
    "item": (
        changed(JANUS, data__sources=[SOURCE, {"task": "txt", "path": "b"}]),
        "data.sources.1.task",
        '"txt" is not "understanding", "text" or "drawing": did you mean "text"?',
    ),
    "part": (changed(JANUS, train=["visoin"]), "train.0", '"visoin" is unknown: did you mean vision?'),
    "part-of-another": (
        changed(JANUS, train=["codebook"]),
        "train.0",
        '"codebook" is unknown: there are vision,',
    ),
    "part-twice": (
        changed(JANUS, train=["vision", "vision"]),
        "train.1",
        '"vision" is named twice: take one out',
    ),
    "nothing": (
        changed(JANUS, train=[]),
        "train",
        "is empty, and there is no lora: name the parts that learn",
    ),
    "vq-part": (
        changed(JANUS, train=["vq"]),
        "train.0",
        'no loss of task = "janus" reaches "vq": train it by its',
    ),
    "judged-category": (
        changed(JANUS, reinforce={"world": "shapes", "categories": ["counting", "colour"]}),
        "reinforce.categories.1",
        '"colour" is unknown: did you mean colors?',
    ),
    "judged-color-unknown": (
        changed(JANUS, reinforce={"world": "shapes", "color": "purpel"}),
        "reinforce.color",
        '"purpel" is unknown: did you mean purple?',
    ),
    "judged-color-unnamed": (
        changed(JANUS, reinforce={"world": "shapes", "categories": ["counting"], "color": "orange"}),
        "reinforce.color",
        '"orange" is in no prompt of these categories: add colors or color_attribution or full',
    ),
    "judged-alone": (
        changed(JANUS, reinforce={"world": "shapes", "pictures": 1}),
        "reinforce.pictures",
        "1 is not a whole number of at least 2",
    ),
    "judged-split": (
        changed(JANUS, reinforce={"world": "shapes"}, parallel={"kind": "fsdp"}),
        "parallel.kind",
        'is "fsdp", and for reinforce each process has the whole model: give "ddp"',
    ),
    "judged-vq": (
        changed(VQ, reinforce={"world": "shapes"}),
        "reinforce",
        'says nothing to task = "vq": take it out',
    ),
    "judged-flow": (
        changed(FLOW, reinforce={"world": "shapes"}),
        "reinforce",
        "says nothing to a JanusFlow: take it out",
    ),
    "accumulate": (
        changed(JANUS, accumulate=3),
        "batch",
        "16 is not a multiple of accumulate = 3: change one",
    ),
    "warm-up": (
        changed(JANUS, schedule__warmup=101),
        "schedule.warmup",
        "101 steps of warmup are more than steps = 100",
    ),
    "wsd": (
        changed(JANUS, schedule={"kind": "wsd", "warmup": 51, "decay": 50}),
        "schedule.decay",
        "101 steps of warmup and decay are more than steps = 100",
    ),
    "wsd-decay": (
        changed(JANUS, schedule__kind="wsd"),
        "schedule.decay",
        'is missing: kind = "wsd" falls over',
    ),
    "decay": (changed(JANUS, schedule__decay=3), "schedule.decay", '3 is of kind = "wsd", not "constant"'),
    "final": (
        changed(JANUS, schedule__final=0.1),
        "schedule.final",
        '0.1 is of kind = "cosine" or "wsd", not',
    ),
    "start": (
        changed(JANUS, model={}),
        "model.checkpoint",
        "is missing: give a folder or hub id, or an archi",
    ),
    "start-twice": (
        changed(JANUS, model__architecture="Janus-Pro-1B"),
        "model.architecture",
        'contradicts checkpoint = "runs/before", which holds it: leave one out',
    ),
    "part-twice-given": (changed(JANUS, model__language="x"), "model.language", "contradicts checkpoint = "),
    "backbone-and-checkpoint": (
        changed(JANUS, model__backbone="x"),
        "model.backbone",
        'contradicts checkpoint = "runs/before"',
    ),
    "backbone-and-language": (
        changed(JANUS, model={"architecture": "Janus-Pro-1B", "backbone": "x", "language": "y"}),
        "model.language",
        'contradicts backbone = "x", which holds it: leave one out',
    ),
    "codes": (
        changed(JANUS, model__code_embedding="codebook"),
        "model.code_embedding",
        "contradicts checkpoint ",
    ),
    "world-given-twice": (
        changed(JANUS, model={"architecture": "Janus-Pro-1B", "processor": "x", "world": "shapes"}),
        "model.world",
        'contradicts processor = "x"',
    ),
    "checkpoint-and-world": (changed(JANUS, model__world="shapes"), "model.world", "contradicts checkpoint "),
    "no-processor": (
        changed(JANUS, model={"architecture": "Janus-Pro-1B"}),
        "model.processor",
        "is missing beside an architecture: give the folder or hub id of a tokenizer",
    ),
    "architecture": (
        changed(JANUS, model={"architecture": "Janus", "processor": "x"}),
        "model.architecture",
        '"Janus" is unknown: did you mean Janus-1.3B?',
    ),
    "architecture-key": (
        changed(JANUS, model={"architecture": {"preset": "Janus-Pro-1B", "language": {"depth": 2}}}),
        "model.architecture.language.depth",
        "is unknown",
    ),
    "tokenizer-alone": (
        changed(
            JANUS,
            model={
                "processor": "x",
                "architecture": {
                    "vq": {"codes": 8, "channels": 32, "encoder_multipliers": [1], "latent_channels": 8}
                },
            },
        ),
        "model.architecture",
        "is a VQ tokenizer alone: give the other parts' sizes",
    ),
    "sft": (
        changed(JANUS, task="sft", model={"architecture": "Janus-Pro-1B", "processor": "x"}),
        "model.checkpoint",
        'is missing: task = "sft" fine-tunes a whole model',
    ),
    "no-ratio": (
        changed(JANUS, data__ratio=None),
        "data.ratio",
        'is missing: task = "janus" mixes tasks, at a',
    ),
    "empty-ratio": (
        changed(JANUS, data__ratio={}),
        "data.ratio",
        "is 0:0:0: give at least one of understanding",
    ),
    "no-source": (
        changed(JANUS, data__ratio={"text": 1, "understanding": 2.5, "drawing": 1}),
        "data.ratio.understanding",
        '2.5 has no source: add one with task = "understanding", or give 0',
    ),
    "no-part": (
        changed(JANUS, data__ratio={"text": 1}),
        "data.sources.1.task",
        '"drawing" has no part in the ratio: give ratio.drawing, or take the source out',
    ),
    "no-sources": (changed(JANUS, data__sources=[]), "data.sources", "is empty: give at least one source"),
    "source": (
        changed(JANUS, data__sources=[{"task": "text"}]),
        "data.sources.0.path",
        "is missing: give a path, a dataset or a world",
    ),
    "source-twice": (
        changed(JANUS, data__sources=[{**SOURCE, "world": "shapes"}]),
        "data.sources.0.world",
        "contradicts path: a source is one of them",
    ),
    "split": (
        changed(JANUS, data__sources=[{**SOURCE, "split": "test"}]),
        "data.sources.0.split",
        '"test" is of a dataset: give one, or leave it out',
    ),
    "columns": (
        changed(JANUS, data__sources=[{**SOURCE, "columns": {"text": "t"}}]),
        "data.sources.0.columns",
        "are of a dataset: give one, or leave them out",
    ),
    "world": (
        changed(JANUS, data__sources=[{"task": "text", "world": "shape"}]),
        "data.sources.0.world",
        '"shape" is not "shapes": did you mean "shapes"?',
    ),
    "shards": (changed(JANUS, parallel__shards=2), "parallel.shards", '2 is of kind = "fsdp", not "ddp"'),
    "replicas": (
        changed(JANUS, parallel={"kind": "fsdp", "replicas": 2}),
        "parallel.shards",
        "is missing beside replicas = 2: give both",
    ),
    "weights": (
        changed(JANUS, loss={"text": 0, "picture": 0}),
        "loss.text",
        "is 0 as picture is, and nothing is",
    ),
    "lora": (changed(JANUS, lora={"targets": []}), "lora.targets", "is empty: name the layers"),
    "lora-split": (
        changed(JANUS, lora={}, parallel={"kind": "fsdp"}),
        "parallel.kind",
        'is "fsdp", which would split weights that stand still',
    ),
    "samples": (
        changed(JANUS, log__samples_every=5),
        "log.samples_every",
        "5 has nothing to show: give prompts, pictures or a world",
    ),
    "never-shown": (
        changed(JANUS, log__prompts=["a"]),
        "log.prompts",
        "is never shown: say how often in sampl",
    ),
    "color": (
        changed(JANUS, data__sources=[{"task": "drawing", "world": "shapes", "color": "pink"}]),
        "data.sources.0.color",
        '"pink" is unknown: there are red, ',
    ),
    "color-of-files": (
        changed(JANUS, data__sources=[{**SOURCE, "color": "red"}]),
        "data.sources.0.color",
        '"red" is of pictures of a world: give a world, or leave it out',
    ),
    "categories": (
        changed(JANUS, data__sources=[{"task": "drawing", "world": "shapes", "categories": ["where"]}]),
        "data.sources.0.categories.0",
        '"where" is unknown: there are single_object, ',
    ),
    "categories-of-text": (
        changed(JANUS, data__sources=[{"task": "text", "world": "shapes", "categories": ["where"]}]),
        "data.sources.0.categories",
        "are of pictures of a world: give a world, or leave them out",
    ),
    "places-of-text": (
        changed(JANUS, data__sources=[{"task": "text", "world": "shapes", "places": "lattice"}]),
        "data.sources.0.places",
        '"lattice" is of pictures of a world: give a world, or leave it out',
    ),
    "nameless-text": (
        changed(JANUS, data__sources=[{"task": "text", "world": "shapes", "nameless": True}]),
        "data.sources.0.nameless",
        "is of pictures of a world: give a world, or leave it out",
    ),
    "evaluate-nameless": (
        changed(JANUS, evaluate={"evaluator": "shapes", "sources": [{**DRAWN, "nameless": True}]}),
        "evaluate.sources.0.nameless",
        'says nothing to evaluator = "shapes", whose lists are fixed: take it out',
    ),
    "evaluate": (
        changed(JANUS, evaluate={"evaluator": "loss"}),
        "evaluate.sources",
        'is missing beside evaluator = "loss": give its data, or take evaluate out',
    ),
    "evaluate-world": (
        changed(JANUS, evaluate={"evaluator": "shapes", "sources": [SOURCE]}),
        "evaluate.sources.0.world",
        'must be "shapes" for evaluator = "shapes"',
    ),
    "evaluate-text": (
        changed(JANUS, evaluate={"evaluator": "shapes", "sources": [{"task": "text", "world": "shapes"}]}),
        "evaluate.sources.0.task",
        '"text" has nothing to verify: give "drawing" or "understanding"',
    ),
    "evaluate-places": (
        changed(JANUS, evaluate={"evaluator": "shapes", "sources": [{**DRAWN, "places": "lattice"}]}),
        "evaluate.sources.0.places",
        'says nothing to evaluator = "shapes", whose lists are fixed: take it out',
    ),
    "evaluate-categories": (
        changed(JANUS, evaluate={"evaluator": "shapes", "sources": [{**DRAWN, "categories": ["full"]}]}),
        "evaluate.sources.0.categories",
        'says nothing to evaluator = "shapes"',
    ),
    "evaluate-twice": (
        changed(
            JANUS, evaluate={"evaluator": "shapes", "sources": [DRAWN, {**DRAWN, "color": "red"}, DRAWN]}
        ),
        "evaluate.sources.2",
        "is there twice: take one out",
    ),
    "defaults": (
        changed(JANUS, defaults={"guidances": [], "temperatures": [1]}),
        "defaults.guidances",
        "is empty: give at least one",
    ),
    "defaults-temperatures": (
        changed(
            JANUS,
            model={"architecture": "Janus-Pro-1B", "processor": "x"},
            defaults={"guidances": [1]},
        ),
        "defaults.temperatures",
        "is missing: give at least one",
    ),
    "vq-defaults": (
        changed(VQ, defaults={"guidances": [1], "temperatures": [1]}),
        "defaults",
        'says nothing to task = "vq": take it out',
    ),
    "vq-accumulate": (changed(VQ, batch=4, accumulate=2), "accumulate", 'says nothing to task = "vq"'),
    "vq-checkpointing": (
        changed(VQ, activation_checkpointing=True),
        "activation_checkpointing",
        'says nothing to task = "vq"',
    ),
    "vq-compile": (changed(VQ, compile=True), "compile", 'says nothing to task = "vq"'),
    "vq-split": (changed(VQ, parallel={"kind": "fsdp"}), "parallel.kind", 'says nothing to task = "vq"'),
    "vq-muon": (changed(VQ, optimizer__kind="muon"), "optimizer.kind", 'says nothing to task = "vq"'),
    "muon-split": (
        changed(JANUS, optimizer__kind="muon", parallel={"kind": "fsdp"}),
        "optimizer.kind",
        'is "muon", which wants matrices whole',
    ),
    "vq-evaluate": (
        changed(VQ, evaluate={"evaluator": "loss", "sources": [{"task": "drawing", "world": "shapes"}]}),
        "evaluate",
        'says nothing to task = "vq"',
    ),
    "vq-of-two": (
        changed(VQ, model={"checkpoint": "a", "vq": "b"}),
        "model.vq",
        'contradicts checkpoint = "a": the tokenizer is of one of them',
    ),
    "vq-still-decoder": (
        changed(VQ, train=["encoder", "codebook"], vq={"decoder_only_from": 3}),
        "vq.decoder_only_from",
        '3 leaves nothing to learn after: add "decoder" to train',
    ),
    "vq-begin": (
        changed(VQ, train=["codebook"], vq={"quantize_from": 2}),
        "vq.quantize_from",
        '2 leaves nothing to learn before: add "decoder" to train, or give 0',
    ),
    "vq-discriminator": (
        changed(VQ, vq={"picture_size": 16, "discriminator_from": 3}),
        "vq.picture_size",
        "16 is too small for discriminator_layers = 3: give 24 or more, or fewer layers",
    ),
    "vae-discriminator": (
        changed(VAE, vae={"picture_size": 16, "discriminator_from": 3}),
        "vae.picture_size",
        "16 is too small for discriminator_layers = 3",
    ),
    **{
        f"vq-{name}": (
            changed(VQ, vq={name: value, **others}),
            f"vq.{name}",
            f"says nothing without {needed}: give that as well, or take this out",
        )
        for name, value, needed, others in (
            ("foreground", 6.0, "background", {}),
            ("tolerance", 9, "background", {}),
            ("background_codes", 3, "background", {}),
            ("background_codes", 0, "start_latents", {"start_latents": 0, "background": [1, 2, 3]}),
            ("merge_share", 0.5, "background", {"decoder_only_from": 3}),
            ("adversarial", 0.9, "discriminator_from", {}),
            ("discriminator_layers", 2, "discriminator_from", {}),
            ("temperature", 0.5, "entropy", {}),
            ("revive_far", True, "revive_every", {"revive_every": "none"}),
        )
    },
    "vae-foreground": (
        changed(VAE, vae={"foreground": 2.0}),
        "vae.foreground",
        "says nothing without backgrou",
    ),
    "vq-section": (changed(JANUS, vq={}), "vq", 'is of task = "vq", not "janus": take it out'),
    "vq-lora": (changed(VQ, lora={}), "lora", 'says nothing to task = "vq": take it out'),
    "vq-loss": (changed(VQ, loss={"text": 2}), "loss", 'says nothing to task = "vq": take it out'),
    "vq-length": (changed(VQ, data__sequence_length=512), "data.sequence_length", "says nothing to task"),
    "vq-packing": (changed(VQ, data__packing=False), "data.packing", 'says nothing to task = "vq"'),
    "vq-dropout": (changed(VQ, data__prompt_dropout=0), "data.prompt_dropout", 'says nothing to task = "vq"'),
    "vq-prompts": (
        changed(VQ, log={"samples_every": 1, "prompts": ["a"]}),
        "log.prompts",
        'says nothing to task = "vq"',
    ),
    "vq-question": (
        changed(
            VQ, log={"samples_every": 1, "pictures": [{"picture": "a"}, {"picture": "a", "question": "?"}]}
        ),
        "log.pictures.1.question",
        'says nothing to task = "vq", which asks nothing: take it out',
    ),
    "scenes": (
        changed(JANUS, log={"samples_every": 1, "prompts": ["a"], "scenes": 2}),
        "log.scenes",
        "are of a world: give one, or leave them out",
    ),
    "lora-language": (
        changed(JANUS, train=["text_head", "language"], lora={}),
        "train.1",
        '"language" learns as a whole, and by the adapters of lora: take it out of one of them',
    ),
    "reinforce-nothing": (
        changed(JANUS, reinforce={"world": "shapes"}, loss={"picture": 0}),
        "loss.picture",
        "is 0, and weights of the drawings of reinforce are multiples of it: raise it",
    ),
    "vq-backbone": (changed(VQ, model__backbone="x"), "model.backbone", 'says nothing to task = "vq"'),
    "vq-vision": (changed(VQ, model__vision="x"), "model.vision", 'says nothing to task = "vq": take it out'),
    "vq-ratio": (
        changed(VQ, data__ratio={"drawing": 1}),
        "data.ratio",
        'says nothing to task = "vq", all of wh',
    ),
    "vq-source": (
        changed(VQ, data__sources=[SOURCE]),
        "data.sources.0.task",
        '"text" is not read for task = "vq": give sources of task "drawing"',
    ),
    "vq-parts": (
        changed(VQ, train=["vision"]),
        "train.0",
        f'"vision" is unknown: there are {", ".join(VQ_PARTS)}',
    ),
    "vq-precision": (
        changed(VQ, precision="bfloat16"),
        "precision",
        '"bfloat16" is too coarse for the weights',
    ),
    "vq-clip": (
        changed(VQ, optimizer__clip="none"),
        "optimizer.clip",
        'is none, and task = "vq" needs one: giv',
    ),
    "vq-decoder": (
        changed(VQ, vq={"decoder_only_from": 1, "quantize_from": 2}),
        "vq.decoder_only_from",
        "1 is before quantize_from = 2: raise it",
    ),
    "vq-merge": (
        changed(VQ, vq={"merge_share": 0.5}),
        "vq.merge_share",
        "0.5 has no moment: codes merge at de",
    ),
    "flow-part": (
        changed(FLOW, train=["vq"]),
        "train.0",
        f'"vq" is unknown: there are {", ".join(FLOW_PARTS)}',
    ),
    "flow-part-of-a-janus": (
        changed(JANUS, model={"architecture": "Janus-Pro-1B", "processor": "x"}, train=["latent_adapter"]),
        "train.0",
        '"latent_adapter" is unknown: ',
    ),
    "flow-vq": (changed(FLOW, model__vq="x"), "model.vq", "says nothing to a JanusFlow: take it out"),
    "flow-codes": (
        changed(FLOW, model__code_embedding="codebook"),
        "model.code_embedding",
        "says nothing to a JanusFlow: take it out",
    ),
    "flow-defaults": (
        changed(FLOW, defaults={"guidances": [1], "temperatures": [1]}),
        "defaults.temperatures",
        "says nothing to a JanusFlow: take it out",
    ),
    **{
        f"janus-{name}": (
            changed(JANUS, model={"architecture": "Janus-Pro-1B", "processor": "x"} | start, **keys),
            key,
            "says nothing to a Janus, which draws by codes: take it out",
        )
        for name, start, keys, key in (
            ("vae", {"vae": "x"}, {}, "model.vae"),
            ("flow", {}, {"flow": {}}, "flow"),
            ("alignment", {}, {"loss": {"alignment": 0.5}}, "loss.alignment"),
        )
    },
    "flow-times": (
        changed(FLOW, flow={"time_deviation": 0}),
        "flow.time_deviation",
        "0 is not a number above 0",
    ),
    "vae-section": (changed(FLOW, vae={}), "vae", 'is of task = "vae", not "janus": take it out'),
    "vae-alone": (
        changed(JANUS, model={"architecture": {"vae": {"channels": [32]}}, "processor": "x"}),
        "model.architecture",
        "is an autoencoder of latents alone: give the parts of a JanusFlow",
    ),
    "vae-flow": (changed(VAE, flow={}), "flow", 'says nothing to task = "vae": take it out'),
    "vae-vq": (changed(VAE, vq={}), "vq", 'says nothing to task = "vae": take it out'),
    "vae-of-vq": (changed(VAE, model__vq="x"), "model.vq", 'says nothing to task = "vae": take it out'),
    "vae-given": (
        changed(VAE, model__vae="x"),
        "model.vae",
        "names one that stands still: give the one to go on from as checkpoint",
    ),
    "vae-parts": (changed(VAE, train=["codebook"]), "train.0", '"codebook" is unknown: there are encoder, '),
    "vae-sizes": (
        changed(VAE, model={"architecture": "JanusFlow-1.3B"}),
        "model.architecture",
        "is no autoencoder of latents: give the sizes, as a vae",
    ),
    "vae-precision": (changed(VAE, precision="bfloat16"), "precision", '"bfloat16" is too coarse for the we'),
    "vq-sizes": (
        changed(VQ, model={"architecture": "JanusFlow-1.3B"}),
        "model.architecture",
        "has no VQ tokenizer: give one's sizes, as a vq",
    ),
    "vq-vae": (changed(VQ, vae={}), "vae", 'says nothing to task = "vq": take it out'),
    "vq-color": (
        changed(VQ, vq={"background": [0, 0, 256]}),
        "vq.background.2",
        "256 is not a whole number fr",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_their_key_and_the_remedy(case: str) -> None:
    tables, key, text = MISTAKES[case]
    with pytest.raises(RecipeError, match=f"^{re.escape(key)}: {re.escape(text)}") as caught:
        build(Recipe, tables)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tables", [JANUS, VQ, FLOW, VAE], ids=["janus", "vq", "flow", "vae"])
def test_nothing_else_is_wrong_with_them(tables: dict[str, Any]) -> None:
    assert build(Recipe, tables).steps == 100


def test_lora_alone_may_learn() -> None:
    recipe = build(Recipe, changed(JANUS, train=[], lora={"rank": 4}))
    assert recipe.lora.rank == 4
    assert recipe.train == ()


def test_sft_needs_no_ratio() -> None:
    assert build(Recipe, changed(JANUS, task="sft", data__ratio=None)).data.ratio is None


@pytest.mark.parametrize(("section", "settings"), [(VQLearning, VQTraining), (VAELearning, VAETraining)])
def test_settings_of_autoencoders_are_all_there(section: type, settings: type) -> None:
    """Each comes from a section: by its own name, or from one that all tasks have."""
    shared = {"learning_rate", "betas", "weight_decay", "clip", "bfloat16", "seed"}
    ours = {each.name: each for each in fields(section)}
    theirs = {each.name: each for each in fields(settings)}
    assert set(ours) - {"picture_size"} == set(theirs) - shared
    assert {name: ours[name].default for name in theirs if name not in shared} == {
        name: each.default for name, each in theirs.items() if name not in shared
    }


def test_settings_of_the_tokenizer() -> None:
    tables = changed(
        VQ,
        vq={"l1": 0.5, "background": [1, 2, 3]},
        seed=3,
        optimizer={"lr": 0.1, "clip": 2, "weight_decay": 1},
    )
    expected = VQTraining(
        l1=0.5,
        background=(1, 2, 3),
        seed=3,
        learning_rate=0.1,
        clip=2.0,
        weight_decay=1.0,
        bfloat16=True,
    )
    assert build(Recipe, tables).vq_training() == expected
    assert not build(Recipe, changed(VQ, precision="float32")).vq_training().bfloat16


def test_fingerprints_tell_recipes_apart() -> None:
    recipe = build(Recipe, JANUS)
    turned = {
        name: dict(reversed(each.items())) if isinstance(each, dict) else each for name, each in JANUS.items()
    }
    assert re.fullmatch("[0-9a-f]{16}", recipe.fingerprint)
    assert build(Recipe, dict(reversed(turned.items()))).fingerprint == recipe.fingerprint
    assert build(Recipe, changed(JANUS, seed=1)).fingerprint != recipe.fingerprint
    # Of this version's keys: a recipe that nobody changed must not seem changed.
    assert build(Recipe, changed(JANUS, optimizer__lr=0.0001)).fingerprint == recipe.fingerprint


def test_differences_are_named_as_overrides_are() -> None:
    one = build(Recipe, JANUS)
    other = build(Recipe, changed(JANUS, seed=1, optimizer__lr=1, optimizer__clip="none", ema=0.9))
    assert differences(one, other) == ["ema", "optimizer.clip", "optimizer.lr", "seed"]
    assert differences(one, one) == []


texts = st.text(min_size=1, max_size=12).filter(lambda text: text != "none")
wholes = st.integers(1, 2**40)
shares = st.floats(0, 1)


def sources(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    weight = st.floats(1e-6, 1e6)
    return st.one_of(
        st.fixed_dictionaries({"task": st.just(kind), "path": texts}, optional={"weight": weight}),
        st.fixed_dictionaries(
            {"task": st.just(kind), "dataset": texts},
            optional={"split": texts, "columns": st.just({"text": "t"})},
        ),
        st.fixed_dictionaries(
            {"task": st.just(kind), "world": st.just("shapes")}, optional={"weight": weight}
        ),
    )


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, unique=True))
    accumulate = draw(st.integers(1, 8))
    warmup, decay = draw(wholes), draw(wholes)
    schedule = draw(
        st.sampled_from(
            [
                {"warmup": warmup},
                {"kind": "cosine", "warmup": warmup, "final": draw(shares)},
                {"kind": "wsd", "warmup": warmup, "decay": decay, "final": draw(shares)},
            ]
        )
    )
    optional: dict[str, Any] = {
        "ema": draw(st.floats(0, 0.9999)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "precision": draw(st.sampled_from(["float32", "autocast", "bfloat16"])),
        "parallel": {"kind": "fsdp", "shards": draw(wholes), "replicas": draw(wholes)},
        "log": {
            "samples_every": draw(wholes),
            "prompts": draw(st.lists(texts, min_size=1, max_size=2)),
            "pictures": [{"picture": draw(texts), "question": draw(texts)}],
        },
        "lora": {"rank": draw(st.integers(1, 64)), "targets": draw(st.lists(texts, min_size=1, max_size=2))},
        "evaluate": {"evaluator": "loss", "sources": [draw(sources(draw(st.sampled_from(KINDS))))]},
        "checkpoint": {"every": draw(wholes), "keep": draw(wholes)},
        "compile": draw(st.booleans()),
        "defaults": {"guidances": [draw(st.floats(0, 9)), 1.0], "temperatures": [draw(shares)]},
        "loss": {"text": draw(shares), "picture": 1},
        "reinforce": {"world": "shapes", "categories": ["full"], "prompts": draw(wholes)},
    }
    chosen = draw(st.sets(st.sampled_from(sorted(optional))))
    if chosen & {"lora", "reinforce"}:
        chosen -= {"parallel"}  # which splits weights that stand still, and those to draw with
    start = {"checkpoint": draw(texts)}
    if draw(st.booleans()):
        small = {"preset": "Janus-Pro-7B", "language": {"layers": draw(st.integers(1, 100))}}
        made = {"world": "shapes"} if draw(st.booleans()) else {"processor": draw(texts)}
        start = {**made, "architecture": draw(st.sampled_from(["Janus-Pro-7B", small]))}
    return build(
        Recipe,
        {
            "task": "janus",
            "train": draw(st.lists(st.sampled_from(sorted({*PARTS} - {"vq"})), min_size=1, unique=True)),
            "steps": warmup + decay + draw(wholes),
            "batch": accumulate * draw(wholes),
            "accumulate": accumulate,
            "model": start,
            "schedule": schedule,
            "optimizer": {
                "lr": draw(st.floats(1e-300, 1e300)),
                "clip": draw(st.sampled_from([1.0, 0.5, "none"])),
                "undecayed": draw(st.lists(st.sampled_from(["norms", "biases", "embeddings"]), unique=True)),
            },
            "data": {
                "sources": [draw(sources(kind)) for kind in kinds],
                "ratio": {kind: draw(st.floats(0.001, 1000)) for kind in kinds},
                "prompt_dropout": draw(shares),
            },
            **{name: optional[name] for name in sorted(chosen)},
        },
    )


@settings(max_examples=40)
@given(recipes())
def test_a_recipe_that_is_written_reads_back_equal(recipe: Recipe) -> None:
    again = parse_recipe(dump(recipe), "dumped.toml")
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint
    assert build(Recipe, recipe.to_dict()) == recipe
    assert differences(recipe, again) == []


@pytest.mark.parametrize("tables", [FLOW, changed(VAE, vae={"kl": 0.5, "background": [1, 2, 3]})])
def test_recipes_of_flows_and_autoencoders_read_back_equal(tables: dict[str, Any]) -> None:
    recipe = build(Recipe, tables)
    assert parse_recipe(dump(recipe), "dumped.toml") == recipe


def test_a_checkpoint_may_be_of_either_family_until_it_is_read() -> None:
    recipe = build(Recipe, changed(FLOW, model={"checkpoint": "runs/before", "vae": "runs/vae"}))
    recipe.check_kind(FLOW_PRESETS["JanusFlow-1.3B"])
    with pytest.raises(
        RecipeError, match=r"^model\.vae: says nothing to a Janus, which draws by codes: take"
    ):
        recipe.check_kind(PRESETS["Janus-1.3B"])
    with pytest.raises(
        RecipeError, match=r'^train\.0: "latent_adaptor" is unknown: did you mean latent_adap'
    ):
        replace(recipe, train=("latent_adaptor",))


def test_a_recipe_of_the_tokenizer_reads_back_equal() -> None:
    recipe = build(Recipe, changed(VQ, vq={"revive_every": "none", "background": [1, 2, 3], "perceptual": 1}))
    assert recipe.vq.revive_every is None
    assert parse_recipe(dump(recipe), "dumped.toml") == recipe


@pytest.mark.parametrize("section", Section.__subclasses__(), ids=lambda section: section.__name__)
def test_every_field_is_documented(section: type) -> None:
    others = {VQLearning: VQTraining.__doc__, VAELearning: VAETraining.__doc__}
    told = f"{section.__doc__} {others.get(section, '')}"  # type: ignore[call-overload]
    for each in fields(section):
        assert f"`{each.name}`" in told, each.name
