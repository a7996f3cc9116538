"""FLOP by formula are those that torch counts, operation by operation, forward and backward."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from janus.config import PRESETS, JanusConfig
from janus.models.janus import Janus
from janus.models.vq import VQ
from janus.training.costs.flops import Counts, cost, machine_rate, reconstruction_flop, tokenizing_flop
from janus.training.costs.longest import fake_batch, longest_row, rows_loss
from janus.training.parts import STAGE_1, STAGE_2, STAGE_3, freeze
from janus.training.recipe.sections import Kind

LENGTH, ROWS = 80, 2
TRAINED = {
    "stage-1": STAGE_1,
    "stage-2": STAGE_2,
    "stage-3": STAGE_3,
    "language": ("language",),
    "adapters": ("vision_adapter", "code_adapter"),
    "vision-and-head": ("vision", "image_head"),
    "embed": ("embed",),
}


def counted(config: JanusConfig, train: tuple[str, ...], kind: Kind) -> int:
    """What torch counts of a step. Its counter does not know a CPU's fused attention."""
    model = Janus(config)
    freeze(model, train)
    row = longest_row(config, LENGTH, kind)
    with FlopCounterMode(display=False) as counter:
        rows_loss(model, fake_batch(config, row, ROWS, "cpu"), row).backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["understanding", "drawing"])
@pytest.mark.parametrize("train", TRAINED)
def test_a_step_costs_what_torch_counts(train: str, kind: Kind, model: Janus) -> None:
    config, learns = model.config, TRAINED[train]
    row = longest_row(config, LENGTH, kind)
    found = cost(config, learns).of(
        Counts(
            tokens=ROWS * LENGTH,
            seen=ROWS * row.seen,
            codes=ROWS * row.drawn * (config.picture_tokens - 1),
            word_labels=ROWS * row.words,
            code_labels=ROWS * row.codes,
        )
    )
    vision = config.vision
    times = 3 if "vision" in learns else 1
    attention = 4 * vision.tokens**2 * vision.width * vision.depth * times * ROWS * row.seen
    assert found - attention == counted(config, learns, kind)


def test_adapters_let_gradients_through_the_blocks() -> None:
    """As if what is before the blocks learned: their own products, of a rank, are small."""
    config = PRESETS["Janus-Pro-1B"]
    counts = Counts(tokens=10, pairs=20, codes=4, word_labels=3, code_labels=5)
    found = cost(config, (), adapted=True).of(counts)
    forward = cost(config, ()).of(counts)
    assert forward < found < 3 * forward
    embed = cost(config, ("embed",))
    assert (cost(config, (), adapted=True).tokens, cost(config, (), adapted=True).pairs) == (
        embed.tokens,
        embed.pairs,
    )


def test_attention_costs_what_its_products_do() -> None:
    """Two products of every pair in each direction that has a gradient, of each layer and head."""
    config = PRESETS["Janus-Pro-1B"]
    language = config.language
    pair = 2 * 2 * language.layers * language.heads * language.head_width
    assert cost(config, STAGE_3).pairs == cost(config, STAGE_1).pairs == 3 * pair
    assert cost(config, ("text_head",)).pairs == pair
    query, key = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    with FlopCounterMode(display=False) as counter:
        weights = torch.bmm(query[0], key[0].transpose(1, 2)).softmax(-1)
        torch.bmm(weights, key[0])
    assert counter.get_total_flops() == 2 * 2 * 2 * 4 * 5 * 5


def test_grouped_heads_and_linear_adapters(model: Janus) -> None:
    config = replace(
        model.config,
        language=replace(model.config.language, kv_heads=2),
        vision_adapter=replace(model.config.vision_adapter, kind="linear", depth=1),
        code_adapter=replace(model.config.code_adapter, depth=3),
    )
    row = longest_row(config, LENGTH, "drawing")
    found = cost(config, STAGE_2).of(
        Counts(
            tokens=ROWS * LENGTH,
            codes=ROWS * row.drawn * (config.picture_tokens - 1),
            code_labels=ROWS * row.codes,
        )
    )
    assert found == counted(config, STAGE_2, "drawing")


def test_an_identity_costs_nothing(model: Janus) -> None:
    width = model.config.language.width
    vision = replace(model.config.vision, width=width, heads=4)
    adapter = replace(model.config.vision_adapter, input_width=width)
    config = replace(model.config, vision=vision, vision_adapter=adapter)
    plain = replace(config, vision_adapter=replace(adapter, kind="identity"))
    both = 2 * width**2 * 2 * vision.tokens
    assert cost(config, ()).seen - cost(plain, ()).seen == both


def test_the_tokenizer(model: Janus) -> None:
    config = model.config.vq
    vq, pixels = VQ(config), torch.zeros(1, 3, 64, 64)
    cells = (64 // config.factor) ** 2
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        latents = vq.latents(pixels)
        flat = F.normalize(latents, dim=1).permute(0, 2, 3, 1).reshape(cells, -1)
        flat @ vq.codebook.T
    assert tokenizing_flop(config, 64) == counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vq.decode_latents(latents)
    whole = tokenizing_flop(config, 64) - 2 * cells * config.codes * config.code_width
    assert reconstruction_flop(config, 64) == whole + counter.get_total_flops()


def test_the_rule_of_thumb() -> None:
    """Of a text that all learns from: six FLOP a weight and token, but for the word table."""
    config = PRESETS["Janus-Pro-1B"]
    step = cost(config, STAGE_3).of(Counts(tokens=100, word_labels=100))
    language = 1_652_656_128 - config.language.vocabulary * config.language.width
    norms = (2 * config.language.layers + 1) * config.language.width
    assert step == 6 * 100 * (language - norms)


def test_the_machines_rate_is_a_rate() -> None:
    assert 0 < machine_rate("cpu", torch.float32, seconds=0.0) < 1e18
