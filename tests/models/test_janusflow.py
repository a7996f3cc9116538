"""JanusFlow against the original's tensors, prompts read once, pictures that are seen, gradients, 16 bits."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus.inference.cache import StaticCache
from janus.models.janusflow import JanusFlow
from janus.models.quantized import QuantizedLinear, quantize

Golden = dict[str, Tensor]
Close = Callable[[Tensor, Tensor], None]
Compute = Callable[[JanusFlow, Golden], Tensor]
TOKENS = 17  # of one picture that is seen
HIDDEN = 0.06  # of bfloat16: see test_janus.py


def given_to(step: int, golden: Golden) -> tuple[Tensor, Tensor, Tensor]:
    return golden["flow.tokens"], golden[f"flow.step{step}.z_in"], golden["flow.t"][step]


def embeds(step: int, flow: JanusFlow, golden: Golden) -> Tensor:
    ids, latents, t = given_to(step, golden)
    return torch.cat((flow.embed(ids[:, :-1]), flow.embed_latents(latents, t).tokens), dim=1)


def velocity(step: int, flow: JanusFlow, golden: Golden) -> Tensor:
    return flow.velocity(*given_to(step, golden), attention_mask=golden["flow.attention_mask"].bool())


def given_to_the_decoder(step: int, flow: JanusFlow, golden: Golden) -> Tensor:
    hidden = golden[f"flow.step{step}.llm_last_hidden_state"][:, -64:]
    decoded = flow.velocity_adapter(flow.velocity_norm(hidden))
    return decoded.transpose(1, 2).unflatten(2, (8, 8))


def every_velocity(flow: JanusFlow, golden: Golden) -> Tensor:
    """At each of the original's latents; in the rows of both, those of the pictures are the same."""
    mask = golden["flow.attention_mask"].bool()
    trajectory = zip(golden["flow.z_trajectory"], golden["flow.t"], strict=True)
    return torch.stack(
        [
            flow.velocity(golden["flow.tokens"], torch.cat((z, z)), t, attention_mask=mask)
            for z, t in trajectory
        ]
    )


# test_golden.py has what JanusFlow computes as Janus does, test_uvit.py the U-ViT.
REPRODUCED: dict[str, Compute] = {
    "vision.aligner_output": lambda flow, golden: flow.encode_images(golden["vision.pixel_values"])[:, 1:],
    **{
        f"flow.step{step}.{name}": lambda flow, golden, step=step, compute=compute: compute(
            step, flow, golden
        )
        for step in (0, 1)
        for name, compute in (
            ("llm_inputs_embeds", embeds),
            ("dec_in", given_to_the_decoder),
            ("v", velocity),
        )
    },
    "flow.v_trajectory": every_velocity,
    "eps_probe.gen_dec_aligner_norm.out": lambda flow, golden: flow.velocity_norm(
        golden["eps_probe.gen_dec_aligner_norm.in0"]
    ),
}


@pytest.mark.parametrize("name", REPRODUCED)
@torch.no_grad()
def test_the_originals_tensor(name: str, flow: JanusFlow, flow_golden: Golden, close: Close) -> None:
    close(REPRODUCED[name](flow, flow_golden), flow_golden[name])


@pytest.mark.parametrize("step", [0, 1])
@torch.no_grad()
def test_hidden_states_of_what_is_seen(step: int, flow: JanusFlow, flow_golden: Golden, close: Close) -> None:
    """Those of masked positions are zero here, and in the original what nobody sees."""
    mask = flow_golden["flow.attention_mask"].bool()
    positions = torch.arange(mask.shape[1])[None]
    hidden = flow.language(embeds(step, flow, flow_golden), mask, positions=positions)
    close(hidden[mask], flow_golden[f"flow.step{step}.llm_last_hidden_state"][mask])


# Prompts read once


def new_cache(flow: JanusFlow, rows: int, capacity: int) -> StaticCache:
    return StaticCache(flow.config.language, rows, capacity, device=flow.device, dtype=flow.dtype)


@torch.no_grad()
def test_a_prompt_read_once_serves_every_evaluation(
    flow: JanusFlow, flow_golden: Golden, close: Close
) -> None:
    ids, mask = flow_golden["flow.tokens"], flow_golden["flow.attention_mask"].bool()
    start = ids.shape[1] - 1
    cache = new_cache(flow, 4, mask.shape[1])
    flow.read_prompt(ids, cache, attention_mask=mask[:, :start])
    for step in (0, 1, 0):
        assert cache.length == start
        _, latents, t = given_to(step, flow_golden)
        close(flow.velocity_after(cache, latents, t, start=start), flow_golden[f"flow.step{step}.v"])
        cache.truncate(start)


@torch.no_grad()
def test_a_row_need_not_hold_what_it_does_not_see(flow: JanusFlow, flow_golden: Golden, close: Close) -> None:
    """The unconditional rows with the keys of their first token alone, where the others' positions are."""
    ids, latents, t = given_to(1, flow_golden)
    cache = new_cache(flow, 2, 66)
    flow.read_prompt(ids[2:, :2], cache)
    start = torch.tensor([66, 66])
    close(flow.velocity_after(cache, latents[2:], t[2:], start=start), flow_golden["flow.step1.v"][2:])
    cache.truncate(1)
    # Counted from what is held, the positions are not the original's.
    wrong = flow.velocity_after(cache, latents[2:], t[2:], start=1)
    assert (wrong - flow_golden["flow.step1.v"][2:]).abs().max() > 0.1


@settings(max_examples=15)
@given(
    length=st.integers(1, 5),
    sides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rows=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_reading_the_prompt_first_changes_nothing(
    flow: JanusFlow, length: int, sides: tuple[int, int], rows: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(480, (rows, length), generator=generator)
    latents = torch.randn(rows, 4, 2 * sides[0], 2 * sides[1], generator=generator)
    t = torch.rand(rows, generator=generator) * 1000
    tokens = sides[0] * sides[1]
    mask = torch.rand(rows, length - 1, generator=generator) < 0.7
    whole = torch.cat((mask, torch.ones(rows, 1 + tokens, dtype=torch.bool)), dim=1)
    with torch.no_grad():
        expected = flow.velocity(ids, latents, t, attention_mask=whole)
        cache = new_cache(flow, rows, length + tokens)
        flow.read_prompt(ids, cache, attention_mask=mask)
        actual = flow.velocity_after(cache, latents, t, start=length - 1)
    assert actual.shape == latents.shape
    # The order of summation; see `close`.
    assert (actual - expected).abs().max() <= 2e-5 * expected.abs().max()


@torch.no_grad()
def test_the_last_token_of_a_prompt_is_without_effect(flow: JanusFlow, flow_golden: Golden) -> None:
    ids, latents, t = given_to(0, flow_golden)
    other = ids.clone()
    other[:, -1] = 7
    assert torch.equal(flow.velocity(other, latents, t), flow.velocity(ids, latents, t))
    other[:, -2] = 7
    assert not torch.equal(flow.velocity(other, latents, t), flow.velocity(ids, latents, t))


@torch.no_grad()
def test_padding_on_the_left_is_without_effect(flow: JanusFlow, close: Close) -> None:
    """Positions count on through padding, and only their differences are seen."""
    ids = torch.tensor([[5, 6, 7, 8]])
    latents, t = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([300.0])
    padded = torch.cat((torch.tensor([[1, 2]]), ids), dim=1)
    mask = torch.tensor([[False] * 2 + [True] * 8])
    close(flow.velocity(padded, latents, t, attention_mask=mask), flow.velocity(ids, latents, t))


# What does not fit


@pytest.mark.parametrize(
    ("ids", "latents", "t", "message"),
    [
        ((1, 3), (1, 3, 4, 4), (1,), r"latents must be \(B, 4, h, w\) .* not \(1, 3, 4, 4\)"),
        ((1, 3), (1, 4, 5, 4), (1,), r"multiples of 2, not \(1, 4, 5, 4\)"),
        ((1, 3), (4, 4, 4), (4,), r"not \(4, 4, 4\)"),
        ((2, 3), (2, 4, 4, 4), (1,), r"t must be one time for each of 2 latents, not \(1,\)"),
        ((2, 3), (2, 4, 4, 4), (), r"t must be one time for each of 2 latents, not \(\)"),
        ((1, 3), (2, 4, 4, 4), (2,), r"input_ids must be \(2, L\): .* not \(1, 3\)"),
        ((2, 0), (2, 4, 4, 4), (2,), r"of one token at least, not \(2, 0\)"),
    ],
)
def test_shapes_that_do_not_fit(
    flow: JanusFlow, ids: tuple[int, ...], latents: tuple[int, ...], t: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        flow.velocity(torch.zeros(ids, dtype=torch.long), torch.zeros(latents), torch.zeros(t))


def test_mask_of_another_length(flow: JanusFlow) -> None:
    arguments = (torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 4, 4, 4), torch.zeros(1))
    with pytest.raises(ValueError, match=r"attention_mask must be \(1, 7\), not \(1, 8\)"):
        flow.velocity(*arguments, attention_mask=torch.ones(1, 8, dtype=torch.bool))


# Pictures that are seen


@torch.no_grad()
def test_seeing_begins_with_an_embedding_of_its_own(flow: JanusFlow, flow_golden: Golden) -> None:
    features = flow.encode_images(flow_golden["vision.pixel_values"])
    assert features.shape == (3, TOKENS, 64)
    assert flow.config.seen_tokens == TOKENS
    assert torch.equal(features[:, 0], flow.begin_embedding.expand(3, -1))
    assert flow.encode_images(torch.zeros(0, 3, 64, 64)).shape == (0, TOKENS, 64)


def test_places_without_the_start_token_are_too_few(flow: JanusFlow) -> None:
    mask = torch.zeros(1, 30, dtype=torch.bool)
    mask[:, 4:20] = True
    with pytest.raises(ValueError, match="marks 16 positions, but 1 pictures of 17 features fill 17"):
        flow.embed(torch.zeros(1, 30, dtype=torch.long), torch.zeros(1, 3, 64, 64), mask)


# Training, precision


def test_gradients_reach_every_parameter(flow: JanusFlow, flow_golden: Golden) -> None:
    flow = copy.deepcopy(flow)
    ids, latents, t = given_to(1, flow_golden)
    mask = flow_golden["flow.attention_mask"].bool()
    places = torch.zeros(1, 30, dtype=torch.bool)
    places[:, 4 : 4 + TOKENS] = True
    pixels = flow_golden["vision.pixel_values"][:1]
    hidden = flow.hidden_states(flow.embed(torch.arange(30)[None], pixels, places))
    answer = flow.text_logits(hidden).logsumexp(-1).mean()
    (flow.velocity(ids, latents, t, attention_mask=mask).pow(2).mean() + answer).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@torch.no_grad()
def test_bfloat16_is_as_near_to_the_originals_as_that_to_float32(data: Path, flow_golden: Golden) -> None:
    half = JanusFlow.from_pretrained(data / "janusflow" / "checkpoint", device="cpu", dtype="bfloat16")
    ids, latents, _ = given_to(0, flow_golden)
    mask = flow_golden["flow.attention_mask"].bool()
    actual = half.velocity(ids, latents, flow_golden["flow.bf16.t"][0], attention_mask=mask)
    assert actual.dtype == torch.bfloat16
    theirs, exact = flow_golden["flow.bf16.v_step0"], flow_golden["flow.step0.v"]
    # Both have float32's result and roundings of their own: at most the sum of two such distances.
    assert (actual.float() - theirs).norm() <= 2 * (theirs - exact).norm()


@torch.no_grad()
def test_a_quantized_language_model_still_draws(flow: JanusFlow, flow_golden: Golden) -> None:
    integers = quantize(copy.deepcopy(flow), "int8")
    assert integers.config.quantization == "int8"
    layers = [name for name, each in integers.named_modules() if isinstance(each, QuantizedLinear)]
    assert len(layers) == 4 * 3 + 1
    assert all(name.startswith("language.") for name in layers)
    exact = flow_golden["flow.step1.v"]
    # 8 bits of a row's largest weight, about 0.4 % of each, pile up over three layers.
    assert (velocity(1, integers, flow_golden) - exact).norm() < HIDDEN * exact.norm()
