"""The benchmark of flows: its peer is the original's loop, and its floor what anybody must compute."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import bench_flow
import models
from cases import FLOW
from janus.inference.flow import guide
from janus.models.janusflow import JanusFlow
from janus.weights.load import empty_model
from make_checkpoint import random_weights, with_files

Golden = dict[str, Tensor]
Close = Callable[[Tensor, Tensor], None]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    models.forget()


@pytest.mark.parametrize("step", [0, 1, 5])
@pytest.mark.parametrize("implementation", ["original-flow", "janus"])
@torch.no_grad()
def test_a_step_is_the_originals(
    implementation: str,
    step: int,
    flow: JanusFlow,
    flow_golden: Golden,
    flow_facts: dict[str, Any],
    close: Close,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if implementation == "original-flow":
        pytest.importorskip("transformers")
    monkeypatch.setattr(bench_flow, "TIME", step / 6)
    monkeypatch.setattr(bench_flow, "STEPS", 6)
    prompts = torch.tensor([flow_facts["flow.prompt_ids"]] * 2)
    before = flow_golden["flow.z_trajectory"][step]
    prepare = bench_flow.setup(FLOW[0], torch.device("cpu"))[implementation]
    guided, after = prepare(flow, prompts, before)()
    close(guided, guide(*flow_golden["flow.v_trajectory"][step].chunk(2), 2.0))
    expected = flow_golden["flow.z_final"] if step == 5 else flow_golden["flow.z_trajectory"][step + 1]
    close(after, expected)


def test_the_prompt_is_read_before_the_step_by_ours_and_in_it_by_the_original(flow: JanusFlow) -> None:
    pytest.importorskip("transformers")
    case = replace(FLOW[0], model=flow.config, dtype=torch.float32, keys=24, side=8)
    torch.manual_seed(0)
    given = bench_flow.inputs(case, torch.device("cpu"))
    assert given[1].shape == (1, 8)
    calls = bench_flow.setup(case, torch.device("cpu"))
    runs: list[tuple[int, int]] = []
    with torch.no_grad():
        ours, other = calls["janus"](*given), calls["original-flow"](*given)
        made = models.once("janus", given[0], lambda model: pytest.fail("it is kept"))
        built = models.once("original-flow", given[0], lambda model: pytest.fail("it is kept"))
        for module, call in ((made.language, ours), (built.llama, other)):
            handle = module.register_forward_pre_hook(
                lambda module, args, options: runs.append((args or (options["inputs_embeds"],))[0].shape[:2]),
                with_kwargs=True,
            )
            call()
            handle.remove()
    assert runs == [(2, 17), (2, 24)]


def test_what_is_computed_is_counted() -> None:
    """By hand: 1.233 billion weights of blocks over 2 x 577 positions, attention, and the U-ViT."""
    (case,) = FLOW
    assert case.tokens == 576
    blocks = 2 * 2 * 577 * 1.2331e9
    # Keys of a conditional row's positions and of an unconditional one's, which has one of its prompt's 29.
    attended = 4 * (577 * (29 + 1) + 577 * 578) * 24 * 2048
    # Two rows of 576 positions: 4 blocks of 8 C² weights of products (C 768, then 1536), and the projections.
    convnext = 2 * 8 * 768**2 + 2 * 8 * 1536**2
    around = 768 * 16 + 768 * 2048 + 2048 * 768 + 1536 * 16
    uvit = 2 * 2 * 576 * (convnext + around)
    # Figures of four digits, without norms and biases.
    assert bench_flow.cost(case).flop == pytest.approx(blocks + attended + uvit, rel=0.005)
    model = empty_model(case.model)
    parts = (model.encoder, model.latent_adapter, model.decoder, model.velocity_adapter)
    weights = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert bench_flow.cost(case).bytes == pytest.approx(2 * (1.2331e9 + weights), rel=0.005)


def test_a_flow_of_random_weights_has_its_files(flow: JanusFlow) -> None:
    model = with_files(random_weights(flow.config, 0, torch.float32))
    assert isinstance(model, JanusFlow)
    assert b"image_gen_tag" in model.files["processor_config.json"]
