"""Drawing by a flow: one step of Euler's method, guided.

A step is all that one evaluation of the velocity costs: the U-ViT and the language model over both rows of
each picture, and guidance. Ours is taken from `janus.inference.flow`, as users run it: the prompts' keys and
values are computed before the step, once for all steps. The original computes them in each.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import models
from cases import FLOW, FlowCase
from janus.config import JanusFlowConfig
from janus.inference.cache import bytes_per_position
from janus.inference.draw_batch import Picture, PromptCaches
from janus.inference.flow import GuidedVelocity
from janus.models.janusflow import EmbeddedLatents, JanusFlow
from janus.weights.load import empty_model
from measure import Cost
from timer import Call
from variants import Prepare

CASES = FLOW
BUDGET, CAPTURE = models.BUDGET, False
GUIDANCE, STEPS, TIME, PAD = 2.0, 30, 0.5, 1


def cost(case: FlowCase) -> Cost:
    """Weights and the prompts' keys and values once. An unconditional row sees of its prompt one token."""
    language, rows = case.model.language, 2 * case.pictures
    positions, prompt = 1 + case.tokens, case.keys - case.tokens - 1
    inside = models.linear_weights(language)
    # Each position sees the prompt, those before it, and itself.
    seen = case.pictures * (positions * (prompt + 1) + positions * (positions + 1))
    attended = 4 * seen * language.layers * language.heads * language.head_width
    weights, flop = _uvit(case.model, case.side)
    stored = case.pictures * (prompt + 1) * bytes_per_position(language, case.dtype)
    return Cost(
        bytes=(inside + weights) * case.dtype.itemsize + stored,
        flop=2 * rows * positions * inside + attended + rows * flop,
        arithmetic=case.dtype,
    )


@functools.cache
def _uvit(config: JanusFlowConfig, side: int) -> tuple[int, int]:
    """Weights around the language model, and FLOP of a row there, counted without computing."""
    model = empty_model(config)
    outside = {"encoder", "latent_adapter", "velocity_norm", "velocity_adapter", "decoder"}
    weights = sum(
        parameter.numel() for name, parameter in model.named_parameters() if name.partition(".")[0] in outside
    )
    latents = torch.empty(1, config.uvit.latent_channels, side, side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embedded: EmbeddedLatents = model.embed_latents(latents, torch.empty(1, device="meta"))
        model.decode_velocity(embedded.tokens, embedded)
    return weights, counter.get_total_flops()


def inputs(case: FlowCase, device: torch.device) -> tuple[Any, ...]:
    """The model, prompts (P, L), and latents (P, c, h, w) on their way."""
    length = case.keys - case.tokens
    prompts = torch.randint(PAD + 3, case.model.language.vocabulary, (case.pictures, length), device=device)
    shape = case.pictures, case.model.uvit.latent_channels, case.side, case.side
    return models.shared(case, device), prompts, torch.randn(shape, device=device, dtype=case.dtype)


def stepping(model: JanusFlow, prompts: Tensor, latents: Tensor) -> Call:
    """-> the guided velocity, and the latents after the step."""
    pictures = [Picture(prompt=tuple(ids), number=number) for number, ids in enumerate(prompts.tolist())]
    tokens = latents.shape[2] * latents.shape[3] // 4
    velocity = GuidedVelocity(model, pictures, GUIDANCE, tokens, PromptCaches(model))
    length = latents.new_tensor(1 / STEPS)

    def call() -> tuple[Tensor, Tensor]:
        guided = velocity(latents, TIME)
        return guided, latents + length * guided

    return call


def setup(case: FlowCase, device: torch.device) -> dict[str, Prepare]:
    options = {"time": TIME, "steps": STEPS, "guidance": GUIDANCE, "pad_id": PAD}
    return models.setup(case, stepping, ("original-flow",), **options)


def problem(case: FlowCase, given: tuple[Any, ...], name: str, result: Any, expected: Any) -> str | None:
    return models.problem(case, name, result, expected)
