"""Drawing: one code of each picture, the way from codes to pixels, and a whole picture.

A step is all that one code costs: embedding the code before it, the language model over both rows of each
picture, the head, guidance, noise and choice. Ours is the step that `janus.inference.draw` takes.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import compare
import models
from cases import DRAW, ModelCase
from janus.config import JanusConfig
from janus.inference.cache import PromptCache
from janus.inference.draw import decode_codes, draw_codes
from janus.inference.draw_batch import DrawBatch, DrawStep, Picture
from janus.inference.sampling import Sampling, seeded_noise
from janus.kernels.sample import guide
from janus.models.janus import Janus
from janus.models.vq import Upsample
from janus.weights.load import empty_model
from measure import Cost
from timer import Call
from variants import Prepare

CASES = DRAW
BUDGET, CAPTURE = models.BUDGET, False
ONLY_IF_ASKED_ON_CPU = ("janus-compiled",)
GUIDANCE, PAD = 5.0, 1
POSITION = 1  # of the first step that is timed


def cost(case: ModelCase) -> Cost:
    return cost_of(case, "janus")


def cost_of(case: ModelCase, name: str) -> Cost:
    """Fewer bits to a weight are fewer bytes; the adapter of codes could be a table, and counts nothing."""
    model = case.model
    head = model.image_head_width * (model.language.width + model.vq.codes)
    if case.task == "picture_step":
        return models.language_cost(case, 2 * case.pictures, 1, head, name)
    if case.task == "vq_decode":
        return decode_cost(case)
    steps, decode = model.picture_tokens, decode_cost(case)
    middle = replace(case, keys=case.keys + steps // 2)
    halfway = models.language_cost(middle, 2 * case.pictures, 1, head, name)
    return Cost(steps * halfway.bytes + decode.bytes, steps * halfway.flop + decode.flop, case.dtype)


def decode_cost(case: ModelCase) -> Cost:
    """Weights once, codes and pixels; what the convolutions and products compute at least."""
    weights, flop = _decoder(case.model)
    pixels = 3 * case.model.picture_size**2 * case.pictures
    return Cost((weights + pixels) * case.dtype.itemsize, flop * case.pictures, case.dtype)


@functools.cache
def _decoder(config: JanusConfig) -> tuple[int, int]:
    """Weights between the codebook and the pixels, and FLOP of a picture, counted without computing.

    Of an enlarged picture's convolution 4 of 9 products need be made (`janus.models.vq_strips`).
    """
    vq = empty_model(config).vq
    latents = torch.empty(1, config.vq.code_width, config.grid, config.grid, device="meta")
    saved = 0

    def count(module: Upsample, inputs: Any, output: Tensor) -> None:
        nonlocal saved
        saved += 2 * (9 - 4) * module.conv.in_channels * output.numel()

    for module in vq.decoder.modules():
        if isinstance(module, Upsample):
            module.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vq.decode_latents(latents)
    parts = vq.decoder, vq.post_quant_conv
    weights = sum(weight.numel() for part in parts for weight in part.parameters())
    return weights, counter.get_total_flops() - saved


def inputs(case: ModelCase, device: torch.device) -> tuple[Any, ...]:
    """The model, and: keys and values of both kinds of row and codes to feed; codes; or prompts."""
    model = models.shared(case, device)
    config = case.model
    if case.task == "picture_step":
        keys, values = models.past(case, device, rows=2)
        return model, keys, values, torch.randint(config.vq.codes, (case.pictures,), device=device)
    if case.task == "vq_decode":
        shape = case.pictures, config.grid, config.grid
        return model, torch.randint(config.vq.codes, shape, device=device)
    return model, torch.randint(
        PAD + 3, config.language.vocabulary, (case.pictures, case.keys), device=device
    )


class Drawing:
    """Steps as `draw_steps` takes them that all find as many keys: before each the cache is cut back.

    The first call feeds `codes`, later ones what was drawn before. The cache has room for one step.
    """

    def __init__(self, model: Janus, keys: Tensor, values: Tensor, codes: Tensor) -> None:
        count, self.past = len(codes), keys.shape[3]
        # A batch has room for a prompt and for all codes but the last: of that sum this leaves past + 1.
        prompt = self.past + 2 - model.config.picture_tokens
        self.batch = DrawBatch(model, count, prompt, GUIDANCE, Sampling())
        hidden = torch.zeros(model.config.language.width, device=keys.device, dtype=keys.dtype)
        rows = [PromptCache(keys[:, row], values[:, row], hidden) for row in range(2) for _ in range(count)]
        self.batch.begin([Picture(prompt=(), number=number) for number in range(count)], rows)
        self.batch.step.place.fill_(POSITION)
        self.batch.step.tokens.copy_(codes)

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        self.batch.cache.truncate(self.past)
        self.batch.step.resume()
        return logits_and_codes(self.batch.shown(POSITION, self.batch.step()))


def logits_and_codes(step: DrawStep) -> tuple[Tensor, Tensor, Tensor]:
    assert step.unconditional is not None
    return step.conditional, step.unconditional, step.codes


def decoding(model: Janus, codes: Tensor) -> Call:
    return lambda: model.vq.decode(codes)


def whole(model: Janus, prompts: Tensor) -> Call:
    """Whole pictures from prompts (P, L), as `pipe.draw` makes them of ids."""
    pictures = [Picture(prompt=tuple(ids), number=number) for number, ids in enumerate(prompts.tolist())]

    def call() -> tuple[Tensor, Tensor]:
        (codes,) = draw_codes(model, pictures, pad_id=PAD, guidance=GUIDANCE, batch_size=len(pictures))
        return codes.flatten(1), decode_codes(model, codes)

    return call


def setup(case: ModelCase, device: torch.device) -> dict[str, Prepare]:
    if case.task == "picture_step":
        return models.setup(case, Drawing, ("transformers", "original"), guidance=GUIDANCE)
    if case.task == "vq_decode":
        return models.setup(case, decoding, ("transformers",))
    return models.setup(case, whole, ("transformers", "original"), guidance=GUIDANCE, pad_id=PAD)


def problem(case: ModelCase, given: tuple[Any, ...], name: str, result: Any, expected: Any) -> str | None:
    """Equal pixels; equal logits, and codes that follow from them.

    Whole pictures draw other codes wherever rounding or noise differs, and all that follow: of them only the
    way from codes to pixels is compared. Their steps are compared in the cases of one step.
    """
    if case.task == "vq_decode":
        return models.problem(case, name, result, expected)
    *floats, codes = result if case.task == "picture_step" else reversed(result)
    if codes.dtype != torch.int64 or codes.shape != expected[2 if len(floats) == 2 else 0].shape:
        return f"{codes.dtype} {tuple(codes.shape)} instead of codes"
    if int(codes.min()) < 0 or int(codes.max()) >= case.model.vq.codes:
        return f"codes from {codes.min()} to {codes.max()} of {case.model.vq.codes}"
    if case.task == "picture":
        grid = case.model.grid
        pixels = decode_codes(given[0], codes.unflatten(1, (grid, grid)))
        return models.problem(case, "", floats[0].float().cpu(), pixels)
    return models.problem(case, name, floats, expected[:2]) or wrong_codes(case, name, *floats, codes)


def wrong_codes(
    case: ModelCase, name: str, conditional: Tensor, baseline: Tensor, codes: Tensor
) -> str | None:
    """Ours are the best of their own logits and the seed's noise; others' only must not be impossible."""
    logits = guide(conditional.double(), baseline.double(), GUIDANCE)
    if not name.startswith("janus"):
        chosen = logits.log_softmax(dim=-1).gather(1, codes[:, None])
        return None if bool((chosen > -30).all()) else "a code that is all but impossible was drawn"
    noise = seeded_noise([0] * len(codes), range(len(codes)), case.model.vq.codes, codes.device)(POSITION)
    score = logits - noise.double().log()
    return compare.near_tie(codes, score.argmax(dim=-1), score, compare.NOISE)
