"""JanusFlow's losses against a plain reference, document by document, and against what inference computes."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from janus.inference.draw_batch import Picture, PromptCaches
from janus.inference.flow import GuidedVelocity, normal_noise
from janus.models.janusflow import JanusFlow
from janus.models.vae import VAE
from janus.processing.image import ImageProcessor, to_signed_pixels
from janus.processing.processor import Processor
from janus.training.data.example import Example
from janus.training.data.outline import IGNORE
from janus.training.data.packing import Batch, pack, pad
from janus.training.flow import (
    FlowObjective,
    add_alignment,
    alignment_of,
    as_seen,
    encode_latents,
    noised,
    with_latents,
)
from janus.training.objectives import Sums, count, figures, total
from janus.training.parts import FLOW_STAGE_2, FLOW_STAGE_3, freeze, remove_alignment, trained
from janus.training.recipe.learning import FlowLearning
from janus.training.recipe.sections import LossWeights

LENGTH, TOKENS, AFTER = 110, 16, 2
SETTINGS = FlowLearning(aligned_after=AFTER)
KINDS = ("understanding", "drawing", "text", "dropped", "understanding", "drawing", "text")
Make = Callable[[str, int], Example]
Batched = Callable[..., Batch]


@pytest.fixture
def learner(fresh_flow: JanusFlow) -> JanusFlow:
    freeze(fresh_flow, FLOW_STAGE_3)
    add_alignment(fresh_flow, AFTER, tokens=TOKENS)
    return fresh_flow


@pytest.fixture
def objective(learner: JanusFlow, flow_reads: Processor) -> FlowObjective:
    return FlowObjective(learner, SETTINGS, flow_reads.config)


@pytest.fixture
def examples(make_flow: Make) -> list[Example]:
    return [make_flow(kind, number) for number, kind in enumerate(KINDS)]


@pytest.fixture
def padded(flow_reads: Processor, flow_vae: VAE) -> Batched:
    """Documents in rows of their own, with their latents."""

    def padded(*examples: Example) -> Batch:
        return with_latents(pad(examples, flow_reads.tokenizer.pad_id), flow_vae)

    return padded


@pytest.fixture
def batch(examples: list[Example], flow_reads: Processor, flow_vae: VAE) -> Batch:
    return with_latents(pack(examples, LENGTH, flow_reads.tokenizer.pad_id), flow_vae)


def sums(objective: FlowObjective, batch: Batch) -> Sums:
    return Sums(*objective(batch))


def on_the_way(example: Example, vae: VAE) -> tuple[Tensor, Tensor, Tensor]:
    """Latents at their time, the time and the velocity, written out for one picture."""
    distribution = vae.encode(example.targets)
    shape = distribution.mean.shape[1:]
    noise, sample = (
        normal_noise([example.seed], [number], math.prod(shape)).unflatten(1, shape) for number in (0, 2)
    )
    clean = distribution.mean + (0.5 * distribution.log_variance).exp() * sample
    clean = clean * vae.config.scaling_factor
    time = torch.sigmoid(normal_noise([example.seed], [1], 1))[:, 0]
    return time * clean + (1 - time) * noise, time, clean - noise


def by_hand(model: JanusFlow, example: Example, vae: VAE, reads: Processor) -> tuple[float, float, float]:
    """A document's text, flow and alignment losses, by the model's own methods for inference."""
    if example.task != "drawing":
        embeds = model.embed(example.ids[None], example.pixels, example.image_mask[None])
        logits = model.text_logits(model.hidden_states(embeds)[0])
        learned = example.labels != IGNORE
        return float(F.cross_entropy(logits[learned], example.labels[learned], reduction="sum")), 0.0, 0.0
    latents, time, velocity = on_the_way(example, vae)
    prompt = example.ids[: len(example) - TOKENS - 1]
    ids = torch.cat((prompt, torch.tensor([reads.image_start_id])))[None]  # whose last only marks the place
    states: list[Tensor] = []
    block = model.language.layers[AFTER - 1]
    hook = block.register_forward_hook(lambda block, given, left: states.append(left[0] + left[1]))
    found = model.velocity(ids, latents, 1000 * time)
    hook.remove()
    errors = (found - velocity).square().mean(dim=1)  # (1, h, w)
    projector = alignment_of(model)
    assert projector is not None
    cosine = F.cosine_similarity(projector(states[0][0, -TOKENS:]), model.vision(example.targets)[0], dim=-1)
    # A token's are the mean of its 2 x 2 places.
    return 0.0, float(F.avg_pool2d(errors, 2).sum()), -float(cosine.sum())


# --- the losses ---


@torch.no_grad()
def test_the_losses_are_those_computed_by_hand(
    objective: FlowObjective, examples: list[Example], batch: Batch, flow_vae: VAE, flow_reads: Processor
) -> None:
    assert batch.ids.shape[0] < len(examples)  # some share a row
    found = sums(objective, batch)
    whole = [example for example in examples if int(example.positions[-1]) == len(example) - 1]
    dropped = [example for example in examples if example not in whole]
    assert len(dropped) == 1
    expected = [by_hand(objective.model, each, flow_vae, flow_reads) for each in whole]
    text, flow, alignment = map(sum, zip(*expected, strict=True))
    rest = sums(objective, with_latents(pad(dropped, 0), flow_vae))
    assert float(found.text) == pytest.approx(text, rel=1e-5)  # of some hundred float32 terms
    assert float(found.picture) == pytest.approx(flow + float(rest.picture), rel=1e-5)
    assert found.alignment is not None
    assert rest.alignment is not None
    assert float(found.alignment) == pytest.approx(alignment + float(rest.alignment), rel=1e-5)


@torch.no_grad()
def test_a_dropped_prompt_is_inferences_unconditional_row(
    objective: FlowObjective, make_flow: Make, padded: Batched, flow_vae: VAE
) -> None:
    """The first token, the time where it would stand after the whole prompt, and the latents."""
    whole, dropped = make_flow("drawing", 5), make_flow("dropped", 5)
    assert len(whole) - len(dropped) == int(dropped.positions[1]) - 1 > 0
    assert whole.positions[-1] == dropped.positions[-1]
    latents, time, velocity = on_the_way(dropped, flow_vae)
    prompt = tuple(whole.ids[: len(whole) - TOKENS].tolist())  # with a token in the time's place
    # Guidance 0 leaves what is unconditional alone.
    guided = GuidedVelocity(
        objective.model, [Picture(prompt=prompt)], 0.0, TOKENS, PromptCaches(objective.model)
    )
    expected = (guided(latents, float(time)) - velocity).square().mean() * TOKENS
    # In float32, rows of other lengths.
    assert float(sums(objective, padded(dropped)).picture) == pytest.approx(float(expected), rel=1e-5)
    # The same by the mask that the original has.
    mask = torch.ones(1, len(whole), dtype=torch.bool)
    mask[0, 1 : len(prompt) - 1] = False
    masked = objective.model.velocity(torch.tensor([prompt]), latents, 1000 * time, attention_mask=mask)
    torch.testing.assert_close(guided(latents, float(time)), masked, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_count_of_labels_is_the_denominator(objective: FlowObjective, batch: Batch) -> None:
    found = sums(objective, batch)
    words, tokens = batch.text_labels, batch.code_labels
    assert tokens == 3 * TOKENS
    assert found.alignment is not None
    told = figures(found, LossWeights(text=2.0, picture=0.5, alignment=3.0), words, tokens)
    loss = 2 * found.text + 0.5 * found.picture + 3 * found.alignment
    # One rounding in float32 or two.
    assert float(told["loss"]) == pytest.approx(float(loss) / (words + tokens), rel=1e-6)
    assert set(told) == {"loss", "text_loss", "flow_loss", "alignment_loss"}
    assert float(told["flow_loss"]) == pytest.approx(float(found.picture) / tokens, rel=1e-6)
    assert -1 <= float(told["alignment_loss"]) <= 1
    # Of a model that knows nothing yet: about the variance of latents and of noise together.
    assert 0.5 < float(told["flow_loss"]) < 20


def gradients(model: JanusFlow) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in trained(model).items() if weight.grad is not None}


def test_gradients_of_packed_documents_are_those_of_unpacked_ones(
    objective: FlowObjective, learner: JanusFlow, examples: list[Example], batch: Batch, padded: Batched
) -> None:
    labels = batch.text_labels + batch.code_labels
    total(sums(objective, batch), LossWeights(), labels).backward()
    packed = gradients(learner)
    learner.zero_grad(set_to_none=True)
    for example in examples:
        total(sums(objective, padded(example)), LossWeights(), labels).backward()
    alone = gradients(learner)
    assert set(packed) == set(alone) == set(trained(learner))
    for name, gradient in alone.items():
        error = (packed[name] - gradient).abs().max() / gradient.abs().max()
        assert error <= 2e-6, f"{name} is off by {error:.1e} of its largest"  # float32 sums in another order


@pytest.mark.parametrize("task", ["text", "understanding", "drawing"])
def test_what_a_batch_has_not_gets_gradients_of_zero(
    task: str, objective: FlowObjective, learner: JanusFlow, make_flow: Make, padded: Batched
) -> None:
    """Then processes of which one draws and another reads still meet in the same collectives."""
    text, flow, alignment = objective(padded(make_flow(task, 2)))
    (text + flow + alignment).backward()
    found = gradients(learner)
    assert set(found) == set(trained(learner))
    sees, draws = task == "understanding", task == "drawing"
    expected = dict.fromkeys(("vision.", "vision_adapter.", "begin_embedding"), sees)
    expected |= dict.fromkeys(("encoder.", "latent_adapter.", "velocity_", "decoder.", "alignment."), draws)
    expected["language.head."] = not draws
    for stem, moves in expected.items():
        assert any(grad.any() for name, grad in found.items() if name.startswith(stem)) == moves, stem
    assert (bool(text), bool(flow), bool(alignment)) == (not draws, draws, draws)


def test_a_few_steps_lower_the_loss_of_a_fixed_batch(
    objective: FlowObjective, learner: JanusFlow, batch: Batch
) -> None:
    optimizer = torch.optim.AdamW(trained(learner).values(), lr=2e-3)
    labels = batch.text_labels + batch.code_labels
    told = []
    for _ in range(12):
        found = sums(objective, batch)
        with torch.no_grad():
            told.append(figures(found, LossWeights(), batch.text_labels, batch.code_labels))
        total(found, LossWeights(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for name in ("text_loss", "flow_loss", "alignment_loss"):
        assert float(told[-1][name]) < float(told[0][name]) - 0.1, name


# --- the alignment ---


def test_the_alignment_reaches_the_projector_and_the_blocks_before_it(
    objective: FlowObjective, learner: JanusFlow, make_flow: Make, padded: Batched
) -> None:
    _, _, alignment = objective(padded(make_flow("drawing", 4)))
    alignment.backward()
    moved = {name for name, gradient in gradients(learner).items() if gradient.any()}
    blocks = {int(name.split(".")[2]) for name in moved if name.startswith("language.layers.")}
    assert blocks == set(range(AFTER))
    assert {name for name in moved if name.startswith("alignment.")} == {
        f"alignment.layers.{number}.{kind}" for number in (0, 2, 4) for kind in ("weight", "bias")
    }
    assert any(name.startswith("encoder.blocks.0.") for name in moved)
    # What is understood is the measure, and does not follow.
    assert not [name for name in moved if name.startswith(("vision", "decoder.", "velocity_"))]


def test_a_model_without_a_projector_has_no_alignment(
    fresh_flow: JanusFlow, flow_reads: Processor, make_flow: Make, padded: Batched
) -> None:
    freeze(fresh_flow, FLOW_STAGE_2)
    found = sums(FlowObjective(fresh_flow, SETTINGS, flow_reads.config), padded(make_flow("drawing", 4)))
    assert found.alignment is not None
    assert not found.alignment
    assert set(figures(found, LossWeights(alignment=0.0), 0, TOKENS)) == {"loss", "flow_loss"}


def test_the_projector_is_random_by_its_seed_and_leaves_no_trace(fresh_flow: JanusFlow) -> None:
    before, state = dict(fresh_flow.state_dict()), torch.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        add_alignment(fresh_flow, AFTER, tokens=TOKENS, seed=seed)
        projector = alignment_of(fresh_flow)
        assert projector is not None
        weights.append(projector.layers[0].weight)
        remove_alignment(fresh_flow)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert set(fresh_flow.state_dict()) == set(before)
    remove_alignment(fresh_flow)  # where there is none


def test_what_cannot_be_aligned_is_refused(fresh_flow: JanusFlow) -> None:
    with pytest.raises(ValueError, match="aligned_after is 4, and the language model has 3 blocks: name one"):
        add_alignment(fresh_flow, 4, tokens=TOKENS)
    with pytest.raises(ValueError, match=r"compares 16 features of a picture with 64 tokens .* the weight 0"):
        add_alignment(fresh_flow, AFTER, tokens=64)


def test_pictures_are_seen_as_the_processor_gives_them(flow_reads: Processor) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(levels)
    target = to_signed_pixels(picture)[None]
    for changes in (
        {},
        {"do_normalize": False},
        {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.2, 1.0, 3.0)},
    ):
        config = replace(flow_reads.config, **changes)  # type: ignore[arg-type]
        # A float32 rounding of numbers up to 5.
        torch.testing.assert_close(
            as_seen(target, config)[0], ImageProcessor(config)(picture), rtol=0, atol=2e-6
        )


# --- latents, noise and times ---


def test_latents_are_scaled_samples_without_gradient(make_flow: Make, flow_vae: VAE) -> None:
    targets = torch.cat([make_flow("drawing", number).targets for number in (1, 2)])
    seeds = torch.tensor([7, 2**62])
    latents = encode_latents(flow_vae, targets, seeds)
    distribution = flow_vae.encode(targets)
    noise = normal_noise(seeds.tolist(), [2, 2], 256).unflatten(1, (4, 8, 8))
    expected = distribution.sample(noise) * 0.13025
    assert torch.equal(latents, expected)
    assert not latents.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode_latents(flow_vae, targets, seeds), latents)
    assert latents.dtype == torch.float32


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5, unique=True), st.randoms())
@settings(max_examples=30)
def test_noise_and_time_are_functions_of_the_seed_alone(seeds: list[int], random: object) -> None:
    order = list(range(len(seeds)))
    random.shuffle(order)  # type: ignore[attr-defined]
    latents = torch.ones(len(seeds), 4, 2, 2)
    whole = noised(latents, torch.tensor(seeds), SETTINGS)
    shuffled = noised(latents, torch.tensor(seeds)[order], SETTINGS)
    for name in ("latents", "times", "velocity"):
        assert torch.equal(getattr(whole, name)[order], getattr(shuffled, name))
    # A straight way: from where it is, the velocity leads to the latents in the time that is left.
    left = (1 - whole.times)[:, None, None, None]
    torch.testing.assert_close(whole.latents + left * whole.velocity, latents, rtol=0, atol=1e-5)
    assert bool(((whole.times > 0) & (whole.times < 1)).all())


def test_times_are_logit_normal() -> None:
    seeds, latents = torch.arange(20_000), torch.zeros(20_000, 1, 1, 1)
    logits = noised(latents, seeds, FlowLearning(time_mean=0.5, time_deviation=2.0)).times.double().logit()
    # Five standard errors of so many.
    assert float(logits.mean()) == pytest.approx(0.5, abs=5 * 2 / 20_000**0.5)
    assert float(logits.std()) == pytest.approx(2.0, abs=5 * 2 / (2 * 20_000) ** 0.5)


def test_counts(batch: Batch, examples: list[Example]) -> None:
    """Of a dropped prompt the places count that are there, not those that are passed over."""
    found = count(batch)
    assert found.pairs == sum(len(each) * (len(each) + 1) // 2 for each in examples)
    assert (found.seen, found.tokenized, found.drawn) == (2, 3, 3)
    assert (found.codes, found.code_labels) == (3 * (TOKENS + 1), 3 * TOKENS)
