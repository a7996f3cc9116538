"""What the benchmarks of whole models share: one set of weights, steps that can be repeated, and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import bench_answer
import bench_codebook
import bench_draw
import models
from cases import ModelCase
from janus.inference.cache import StaticCache
from janus.models.janus import Janus
from janus.weights.load import empty_model

CPU = torch.device("cpu")
EVERYTHING = {case.name: case for module in (bench_draw, bench_answer) for case in module.CASES}


def numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def small(model: Janus) -> Any:
    """A case made small, by its full name."""

    def make(name: str, **changes: Any) -> ModelCase:
        return replace(EVERYTHING[name], model=model.config, dtype=torch.float32, **{"keys": 20, **changes})

    return make


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    models.forget()


def test_one_size_is_kept_at_a_time(small: Any) -> None:
    case = small("text_step_1b_bf16")
    first = models.shared(case, CPU)
    assert models.shared(case, CPU) is first
    made = models.once("other", first, lambda model: object())
    assert models.once("other", first, lambda model: object()) is made
    second = models.shared(replace(case, dtype=torch.bfloat16), CPU)
    assert second.dtype == torch.bfloat16
    assert models.once("other", second, lambda model: object()) is not made
    assert models.shared(case, CPU) is not first
    stranger = models.twin(second)
    assert models.once("other", stranger, lambda model: model) is stranger


def test_twins_share_weights_and_not_modules(small: Any) -> None:
    model = models.shared(small("text_step_1b_bf16"), CPU)
    twin = models.twin(model)
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    twin.image_head.up = torch.nn.Linear(1, 1)
    assert model.image_head.up.weight.shape != (1, 1)


@pytest.mark.parametrize(("size", "layers"), [("1b", 2.542e9), ("7b", 12.310e9)])
def test_a_step_reads_the_blocks_and_the_head_once_and_every_key(size: str, layers: float) -> None:
    case = EVERYTHING[f"picture_step_{size}_bf16"]
    model = empty_model(case.model)
    norms = sum(parameter.numel() for parameter in model.language.layers.parameters() if parameter.ndim == 1)
    biases = sum(parameter.numel() for parameter in model.image_head.parameters() if parameter.ndim == 1)
    weights = 2 * (numbers(model.language.layers) - norms + numbers(model.image_head) - biases)
    # Figures of four digits.
    assert weights == pytest.approx(layers, rel=1e-3)
    language = case.model.language
    keys = 2 * 2 * 606 * language.layers * language.kv_heads * language.head_width * 2  # 2 rows, 2 bytes
    found = bench_draw.cost(case)
    assert found.bytes == weights + keys
    assert bench_draw.cost_of(case, "janus-int8").bytes == weights // 2 + keys
    assert weights // 4 < bench_draw.cost_of(case, "janus-int4").bytes - keys < 0.3 * weights
    # In float64.
    assert found.flop == pytest.approx(2 * 2 * weights / 2 + 2 * keys / 2, rel=1e-6)
    four = bench_draw.cost(replace(case, pictures=4))
    assert (four.bytes, four.flop) == (weights + 4 * keys, 4 * found.flop)


def test_what_is_computed_is_counted() -> None:
    """Beside figures that were computed by hand from the architecture, within what those leave out."""
    for name, flop in (
        ("vq_decode_384_bf16", 509e9),
        ("vision_encode_1b_bf16", 381e9),
        ("prefill_606_1b_bf16", 1.54e12),
        ("prefill_606_7b_bf16", 7.50e12),
    ):
        module = bench_draw if name.startswith("vq") else bench_answer
        assert module.cost(EVERYTHING[name]).flop == pytest.approx(flop, rel=0.025)
    text = bench_answer.cost(EVERYTHING["text_step_1b_bf16"]).bytes
    assert text == pytest.approx(2.89e9 + 606 * 192 * 1024, rel=2e-3)


def test_a_lookup_reads_the_entries_that_random_codes_touch() -> None:
    for case in bench_codebook.CASES:
        if case.task == "lookup":
            latents = case.pictures * case.side**2
            torch.manual_seed(0)
            touched = torch.randint(case.codes, (latents,)).unique().numel()
            numbers = (latents + touched) * case.width
            expected = numbers * case.dtype.itemsize + 8 * latents
            # Which entries random codes touch varies by less.
            assert bench_codebook.cost(case).bytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["picture_step_4_1b_bf16", "text_step_1b_bf16"])
def test_every_step_finds_as_many_keys(small: Any, name: str) -> None:
    """However often it is called: more often than a picture has codes, too."""
    case = small(name)
    module = bench_draw if case.task == "picture_step" else bench_answer
    torch.manual_seed(0)
    given = module.inputs(case, CPU)
    with torch.no_grad():
        call = module.setup(case, CPU)["janus"](*given)
        first = call()
        cache = call.batch.cache if case.task == "picture_step" else call.cache
        assert cache.capacity == case.keys
        for _ in range(case.model.picture_tokens + 3):
            assert cache.length == case.keys
            logits = call()[0]
        again = module.setup(case, CPU)["janus"](*given)()
    assert logits.shape == first[0].shape
    assert not torch.equal(logits, first[0])  # another code was fed
    for tensor, same in zip(first, again, strict=True):
        assert torch.equal(tensor, same)  # the first call feeds what is given


def test_the_first_step_is_that_of_the_whole_sequence(small: Any) -> None:
    """The same positions at once and without a cache, from a prompt whose keys are known."""
    case = small("text_step_1b_bf16")
    model = models.shared(case, CPU)
    torch.manual_seed(1)
    words = torch.randint(case.model.language.vocabulary, (1, case.keys))
    with torch.no_grad():
        cache = StaticCache(model.config.language, 1, case.keys - 1, device=CPU, dtype=torch.float32)
        model.hidden_states(model.embed(words[:, :-1]), None, cache)
        logits, word = bench_answer.Answering(model, cache.keys, cache.values, words[0, -1:])()
        expected = model.text_logits(model.hidden_states(model.embed(words)))[:, -1]
    assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert torch.equal(word, expected.argmax(dim=-1))


def test_fewer_bits_may_differ_by_more_but_not_by_anything(small: Any) -> None:
    case = small("text_step_1b_bf16")
    expected = torch.linspace(-1, 1, 101)[None], torch.tensor([100])
    for name, allowed in (("janus", 1e-5), ("janus-int8", 0.05), ("janus-int4", 0.5)):
        for error, right in ((allowed, True), (1.7 * allowed + 0.1, False)):
            signs = torch.arange(101)[None] % 2 * 2 - 1.0
            signs[0, 100] = 1  # the likeliest stays so: what is chosen is compared as well
            noise = signs * error * expected[0].norm() / 101**0.5
            found = bench_answer.problem(case, (), name, (expected[0] + noise, expected[1]), expected)
            assert (found is None) == right, (name, error, found)
    assert bench_answer.problem(case, (), "janus", (expected[0], expected[1] - 1), expected) is not None
