"""Choosing codes: guidance, temperature, top-k, noise."""

from __future__ import annotations

import torch
from torch import Tensor

import compare
from cases import SAMPLE, SampleCase
from janus.kernels.sample import (
    exponential_noise,
    guide,
    keep_top,
    sample,
    sample_reference,
)
from measure import Cost
from timer import Call
from variants import Prepare, eager_and_compiled, ours

CASES = SAMPLE

# Ten rounds of Philox give four words: two products, four exclusive ors and two sums a round; then guidance,
# a logarithm, an exponential and a comparison.
OPERATIONS = 10 * 8 // 4 + 10


def cost(case: SampleCase) -> Cost:
    numbers = case.pictures * case.codes
    return Cost(2 * numbers * case.dtype.itemsize, OPERATIONS * numbers, torch.float32)


def inputs(case: SampleCase, device: torch.device) -> tuple[Tensor, ...]:
    """Logits of both kinds, the pictures' seeds and numbers, and the position."""
    conditional, unconditional = torch.randn(2, case.pictures, case.codes, dtype=case.dtype, device=device)
    seeds = torch.randint(2**62, (case.pictures,), device=device)
    numbers = torch.arange(case.pictures, device=device)
    return conditional, unconditional, seeds, numbers, torch.randint(576, (1,), device=device)


def setup(case: SampleCase, device: torch.device) -> dict[str, Prepare]:
    """`eager` has the same noise; `multinomial` is what the original does, with noise of its own."""
    options = case.guidance, case.temperature, case.top_k

    def eager(*arguments: Tensor) -> Tensor:
        return sample_reference(*arguments, *options)

    def kernel(
        conditional: Tensor, unconditional: Tensor, seeds: Tensor, numbers: Tensor, position: Tensor
    ) -> Tensor:
        return sample(
            conditional,
            unconditional,
            seeds=seeds,
            numbers=numbers,
            position=position,
            guidance=case.guidance,
            temperature=case.temperature,
            top_k=case.top_k,
        )

    def multinomial(conditional: Tensor, unconditional: Tensor, *_: Tensor) -> Call:
        def call() -> Tensor:
            logits = unconditional + case.guidance * (conditional - unconditional)
            logits = logits / case.temperature
            if case.top_k:
                logits = logits.masked_fill(logits < logits.topk(case.top_k).values[:, -1:], -torch.inf)
            return torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]

        return call

    return eager_and_compiled(eager) | ours(kernel, device) | {"multinomial": multinomial}


def problem(
    case: SampleCase, given: tuple[Tensor, ...], name: str, result: Tensor, expected: Tensor
) -> str | None:
    """Equal codes, unless two nearly tied; of `multinomial` only that they are codes that may be chosen."""
    conditional, unconditional, seeds, numbers, position = given
    if result.shape != expected.shape or result.dtype != torch.int64:
        return f"{result.dtype} {tuple(result.shape)} instead of codes {tuple(expected.shape)}"
    if int(result.min()) < 0 or int(result.max()) >= case.codes:
        return f"codes from {result.min()} to {result.max()} of {case.codes}"
    logits = guide(conditional.double(), unconditional.double(), case.guidance) / case.temperature
    if name == "multinomial":
        chosen = logits.log_softmax(dim=-1).gather(1, result[:, None])
        return None if bool((chosen > -20).all()) else "a code that is all but impossible was drawn"
    noise = exponential_noise(seeds, numbers, position, case.codes)
    return compare.near_tie(
        result, expected, keep_top(logits, case.top_k) - noise.double().log(), compare.NOISE
    )
