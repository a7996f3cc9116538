"""What is told before a run: numbers that learn, bytes by kind, and how they are shown."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from janus.config import PRESETS, JanusConfig
from janus.inference.cache import StaticCache
from janus.models.janus import Janus
from janus.training.costs.longest import Row, longest_row
from janus.training.costs.memory import GIB, Memory, Part, estimate_memory, format_memory
from janus.training.costs.weigh import DTYPES, weigh, weigh_tokenizing, weigh_vq
from janus.training.data.packing import Batch
from janus.training.optimizer import build_optimizer
from janus.training.parts import PARTS, STAGE_3, VQ_PARTS, freeze, parameters
from janus.training.recipe.fields import build
from janus.training.recipe.recipe import Recipe
from janus.training.vq import VQState
from janus.weights.load import empty_model


@pytest.fixture(scope="module")
def config(fewer_layers: Callable[[int], JanusConfig]) -> JanusConfig:
    return fewer_layers(1)


def recipe(*tasks: str, **keys: Any) -> Recipe:
    kinds = tasks or ("text",)
    tables = {
        "train": list(STAGE_3),
        "steps": 10,
        "batch": 2,
        "precision": "float32",
        "model": {"checkpoint": "x"},
        "data": {
            "sources": [{"task": kind, "path": "a"} for kind in kinds],
            "ratio": dict.fromkeys(kinds, 1),
            "sequence_length": 80,
        },
        "optimizer": {"lr": 1.0},
    }
    return build(Recipe, {**tables, **keys})


def little(model: Janus, batch: Batch, row: Row) -> Tensor:
    """A loss that is weighed in no time, where it is not what is asked for."""
    return model.image_head.out.bias.sum()


def learning(config: JanusConfig, train: tuple[str, ...]) -> int:
    model = empty_model(config)
    freeze(model, train)
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_parts_of_the_released_model_are_those_that_were_counted() -> None:
    """Source: the manifests of the released files; SigLIP without its pooling head, VQ without a buffer."""
    counted = {
        part: sum(weight.numel() for weight in weights.values())
        for part, weights in parameters(empty_model(PRESETS["Janus-Pro-1B"])).items()
    }
    assert counted["vision_adapter"] == 6_295_552
    assert counted["code_adapter"] == 4_214_784
    assert counted["image_head"] == 37_767_168
    assert counted["code_embedding"] == 131_072
    assert counted["vq"] == 71_948_939 - 65_536
    assert counted["embed"] + counted["language"] + counted["text_head"] == 1_652_656_128
    assert counted["vision"] < 316_283_904


def test_bytes_by_kind(config: JanusConfig) -> None:
    given = recipe("text", ema=0.9)
    memory = estimate_memory(config, given)
    everything = sum(weight.numel() for weight in empty_model(config).parameters())
    learns = learning(config, STAGE_3)
    assert sum(part.numbers for part in memory.parts.values()) == everything
    assert sum(part.learning for part in memory.parts.values()) == learns
    assert memory.parts["vq"].learning == 0
    assert set(memory.parts) == set(PARTS)
    assert memory.weights == everything * 4
    assert memory.gradients == memory.average == learns * 4
    assert memory.moments == learns * 8
    assert memory.gathered == 0
    weighed = weigh(config, given, longest_row(config, 80, "text"), 2)
    assert (memory.activations, memory.step) == (weighed.held, weighed.most)
    assert memory.total == memory.weights + memory.moments + memory.average + memory.step
    assert memory.tokens == 160


def test_before_the_first_step_there_is_the_whole_model(config: JanusConfig) -> None:
    """Random weights in float32, whatever they become; of a checkpoint, what they are computed in."""
    everything = sum(weight.numel() for weight in empty_model(config).parameters())
    little = {"precision": "bfloat16", "train": ["vision_adapter"]}
    random = {"architecture": "Janus-Pro-1B", "processor": "x"}
    made = estimate_memory(config, recipe("text", **little, model=random))
    assert made.start == 2 * made.weights == 4 * everything
    assert made.total == max(made.start, made.weights + made.moments + made.step)
    assert (
        estimate_memory(config, recipe("text", **little, model={"checkpoint": "x"})).start == 2 * everything
    )


def test_moments_are_what_the_optimizer_keeps(config: JanusConfig) -> None:
    """But for the number of steps that it keeps beside them, in float32, for each parameter."""
    for precision, kind in itertools.product(("float32", "bfloat16"), ("adamw", "muon")):
        given = recipe(precision=precision, train=list(STAGE_3), optimizer={"lr": 1e-3, "kind": kind})
        fresh = Janus(config).to(DTYPES[precision])
        freeze(fresh, STAGE_3)
        optimizer = build_optimizer(fresh, given.optimizer)
        for weight in fresh.parameters():
            if weight.requires_grad:
                weight.grad = weight.detach().clone()
        optimizer.step()
        kept = sum(
            tensor.nbytes
            for state in optimizer.state.values()
            for name, tensor in state.items()
            if name != "step"
        )
        assert estimate_memory(config, given, loss=little).moments == kept


def test_sixteen_bits_take_half_and_averages_do_not(config: JanusConfig) -> None:
    whole, half = (
        estimate_memory(config, recipe(precision=precision, ema=0.9), loss=little)
        for precision in ("float32", "bfloat16")
    )
    assert (half.weights * 2, half.gradients * 2, half.moments * 2) == (
        whole.weights,
        whole.gradients,
        whole.moments,
    )
    assert half.average == whole.average


def test_the_worst_rows_decide(config: JanusConfig) -> None:
    given = recipe("understanding", "text", "drawing")
    memory = estimate_memory(config, given)
    expected = {
        kind: weigh(config, given, longest_row(config, 80, kind), 2).most  # type: ignore[arg-type]
        for kind in ("understanding", "text", "drawing")
    }
    assert memory.by_row == {**expected, "tokenizing": weigh_tokenizing(config, given, 2)}
    assert memory.step == max(memory.by_row.values())


def test_attempts_take_their_caches(config: JanusConfig) -> None:
    judged = recipe(reinforce={"world": "shapes", "prompts": 5, "pictures": 4})
    memory = estimate_memory(config, judged, ranks=2)
    # Three of the five prompts are a process's at most; captions have up to 64 tokens.
    cache = StaticCache(
        config.language,
        3 * 4,
        64 + config.picture_tokens,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert memory.by_row["rollouts"] == cache.keys.nbytes + cache.values.nbytes
    assert memory.by_row["drawing"] == estimate_memory(config, recipe("drawing"), ranks=2).by_row["drawing"]


def test_rows_of_a_process(config: JanusConfig) -> None:
    """Eight rows over two processes in two turns are two at once."""
    seen = []

    def loss(model: Janus, batch: Batch, row: Row) -> Tensor:
        seen.append(batch.ids.shape)
        return little(model, batch, row)

    assert estimate_memory(config, recipe(batch=8, accumulate=2), ranks=2, loss=loss).tokens == 8 * 80
    assert set(seen) == {(2, 80)}
    with pytest.raises(
        ValueError, match=r"^batch 8 cannot be shared out to 3 processes in accumulate = 2 turns"
    ):
        estimate_memory(config, recipe(batch=8, accumulate=2), ranks=3)
    with pytest.raises(ValueError, match=r"^ranks must be a whole number of at least 1, not 0$"):
        estimate_memory(config, recipe(), ranks=0)


def test_a_split_model_takes_its_share(config: JanusConfig) -> None:
    whole = estimate_memory(config, recipe(batch=4), ranks=1, loss=little)
    split = estimate_memory(config, recipe(batch=4, parallel={"kind": "fsdp"}), ranks=2, loss=little)
    mesh_of = {"kind": "fsdp", "shards": 2, "replicas": 2}
    mesh = estimate_memory(config, recipe(batch=4, parallel=mesh_of), ranks=4, loss=little)
    tokenizer = 4 * sum(weight.numel() for weight in empty_model(config).vq.parameters())  # nobody splits it
    # Rounded up where a number does not divide.
    for kind, apart in (("weights", tokenizer), ("gradients", 0), ("moments", 0)):
        assert 0 <= 2 * (getattr(split, kind) - apart) - (getattr(whole, kind) - apart) <= 8
        assert getattr(mesh, kind) == getattr(split, kind)
    blocks = (config.language.layers, config.vision.depth)
    assert blocks == (1, 1)
    # All that is in no block, and twice the larger of the two kinds of blocks.
    sizes = [
        sum(weight.numel() for weight in block.parameters())
        for block in (empty_model(config).language.layers[0], empty_model(config).vision.blocks[0])
    ]
    outside = (whole.weights - tokenizer) // 4 - sum(sizes)
    assert split.gathered == (outside + 2 * max(sizes)) * 4
    assert whole.gathered == 0


def test_checkpointing_the_other_way(config: JanusConfig) -> None:
    given = recipe(activation_checkpointing=True)
    memory = estimate_memory(config, given)
    assert memory.checkpointing
    assert (
        memory.otherwise == weigh(config, given, longest_row(config, 80, "text"), 2, checkpointing=False).most
    )


def test_the_tokenizer(config: JanusConfig) -> None:
    tables: dict[str, Any] = {
        "task": "vq",
        "train": list(VQ_PARTS),
        "steps": 10,
        "batch": 2,
        "precision": "float32",
        "model": {"checkpoint": "x"},
        "data": {"sources": [{"task": "drawing", "path": "a"}]},
        "optimizer": {"lr": 1.0},
        "vq": {"picture_size": 32, "discriminator_from": 1},
    }
    given = build(Recipe, tables)
    memory = estimate_memory(config, given)
    vq = empty_model(config).vq
    discriminator = VQState.start(Janus(config).vq, given.vq_training()).discriminator
    assert discriminator is not None
    numbers = sum(weight.numel() for module in (vq, discriminator) for weight in module.parameters())
    assert set(memory.parts) == {*VQ_PARTS, "discriminator"}
    assert (memory.weights, memory.gradients, memory.moments) == (numbers * 4, numbers * 4, numbers * 8)
    assert memory.activations == weigh_vq(config.vq, given, 2).held
    assert memory.tokens == 2 * (32 // config.vq.factor) ** 2
    assert estimate_memory(config.vq, given) == memory


def test_what_is_shown() -> None:
    memory = Memory(
        parts={"vision": Part(2_500_000, 0), "language": Part(1_000_000_000, 1_000_000_000)},
        weights=2 * GIB,
        gradients=GIB,
        moments=2 * GIB,
        average=0,
        gathered=0,
        activations=3 * GIB // 2,
        step=2 * GIB,
        tokens=1_048_576,
        checkpointing=False,
        otherwise=GIB,
        by_row={"text": 2 * GIB, "tokenizing": GIB // 2},
    )
    assert (
        format_memory(memory)
        == """\
parameters (millions)          all  learning
  vision                      2.50      0.00
  language                1,000.00  1,000.00
  all                     1,002.50  1,000.00

memory of a process            GiB
  weights                    2.000
  gradients                  1.000
  optimizer                  2.000
  activations                1.500
  at the worst moment        6.000
    text rows                6.000
    tokenizing               4.500
  with checkpointing         5.000

tokens a step, at most   1,048,576"""
    )


def test_what_is_shown_has_one_width(config: JanusConfig) -> None:
    shown = format_memory(
        estimate_memory(config, recipe("text", ema=0.5, activation_checkpointing=True), loss=little)
    )
    assert "moving average" in shown
    assert "without checkpointing" in shown
    for line in shown.splitlines():
        assert re.fullmatch(r"|.{24} *[\d.,]+( +[\d.,]+)?|\w.* +\w+", line), line
