"""What speculative drawing gains: how many codes a pass gives, and how long a pass takes.

    python benchmarks/speculation.py passes [--noise 3] [--steps 500]
    python benchmarks/speculation.py time [--preset Janus-Pro-1B] [--pictures 1] [--dtype bfloat16]

`passes` trains a small Janus on synthetic pictures for some minutes (a disc of one of four shades on a slope
of brightness, with noise of so many of 128 levels; the shade is the prompt), and draws with it: codes per
pass for every window and way to guess, each picture compared with the one drawn code after code. `time` takes
random weights of full size, whose pictures cannot be guessed as those of a trained model can, and times one
pass by window in the middle of a picture beside a step of the plain loop. The product of the two ratios is
the gain.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from janus.config import PRESETS, AdapterConfig, JanusConfig, LanguageConfig, VisionConfig, VQConfig
from janus.inference.draw import draw_steps
from janus.inference.draw_batch import DrawStep, Picture, PromptCaches
from janus.inference.prepare import prepare
from janus.inference.sampling import Sampling
from janus.inference.speculate import Clues, Guess, SpeculativeStep, by_newest, speculative_steps
from janus.models.janus import Janus
from make_checkpoint import random_model
from timer import Budget, cpu_region, interleaved

WINDOWS = (2, 4, 8, 16)
GRID, LEVELS = 16, 128
SHADES, PAD, BEGIN, DRAW = range(4), 4, 5, 6  # the vocabulary of the small model
SETTINGS = {
    "guidance 1": (1.0, Sampling()),
    "guidance 5": (5.0, Sampling()),
    "guidance 5, greedy": (5.0, Sampling(temperature=0)),
}


# --- how codes are guessed ---


def at_random(clues: Clues) -> Tensor:
    generator = torch.Generator().manual_seed(clues.position)
    return torch.randint(LEVELS, (len(clues.codes),), generator=generator)


def the_last_code(clues: Clues) -> Tensor:
    return clues.codes[:, -1]


def the_code_above(clues: Clues) -> Tensor:
    return clues.codes[:, -min(clues.grid, clues.position)]


GUESSES: dict[str, Guess] = {
    "at random": at_random,
    "the last code": the_last_code,
    "the code above": the_code_above,
    "own noise, the newest logits": by_newest,
}


# --- a small model that draws ---


def small_config() -> JanusConfig:
    width = 64
    return JanusConfig(
        vision=VisionConfig(
            image_size=2 * GRID,
            patch_size=GRID,
            width=32,
            layers=1,
            heads=2,
            mlp_ratio=2.0,
            select_layer=-1,
            norm_eps=1e-6,
        ),
        vision_adapter=AdapterConfig(kind="linear", depth=1, input_width=32, output_width=width),
        vq=VQConfig(
            codes=LEVELS,
            code_width=16,
            channels=32,
            encoder_multipliers=(1, 1),
            decoder_multipliers=(1, 1),
            residual_blocks=1,
            latent_channels=32,
        ),
        code_adapter=AdapterConfig(kind="mlp_gelu", depth=2, input_width=16, output_width=width),
        image_head_width=width,
        language=LanguageConfig(
            vocabulary=DRAW + 1,
            width=width,
            mlp_width=3 * width,
            layers=3,
            heads=4,
            kv_heads=4,
            head_width=width // 4,
            norm_eps=1e-6,
            rope_theta=10000.0,
            window=1024,
            tied_head=False,
        ),
        dtype="float32",
    )


def synthetic(number: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shades (N,) and the codes (N, GRID^2) of pictures with a disc of that shade."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(number, 1, 1, generator=generator)

    shades = torch.randint(len(SHADES), (number,), generator=generator)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, GRID)] * 2, indexing="ij")
    angle = uniform(0, 2 * math.pi)
    slope = uniform(0.3, 0.7) + 0.25 * (x * angle.cos() + y * angle.sin())
    inside = (x - uniform(-0.6, 0.6)) ** 2 + (y - uniform(-0.6, 0.6)) ** 2 < uniform(0.25, 0.6) ** 2
    brightness = torch.where(inside, (0.1 + 0.8 * shades / 3)[:, None, None], slope) * (LEVELS - 1)
    brightness = brightness + noise * torch.randn(number, GRID, GRID, generator=generator)
    return shades, brightness.round().clamp(0, LEVELS - 1).long().flatten(1)


def trained(noise: float, steps: int) -> tuple[Janus, float]:
    """The small model, and its loss at last, nats per code."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Janus(small_config())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        shades, codes = synthetic(32, noise, generator)
        # A tenth without the prompt, for guidance to compare with.
        shades[torch.rand(len(shades), generator=generator) < 0.1] = PAD
        prompts = F.pad(F.pad(shades[:, None], (1, 0), value=BEGIN), (0, 1), value=DRAW)
        embeds = torch.cat((model.embed(prompts), model.embed_codes(codes[:, :-1])), dim=1)
        logits = model.image_logits(model.hidden_states(embeds)[:, prompts.shape[1] - 1 :])
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model.eval(), sum(losses[-20:]) / 20


def some_pictures(number: int) -> list[Picture]:
    return [
        Picture(prompt=(BEGIN, index % len(SHADES), DRAW), seed=1, number=index) for index in range(number)
    ]


def codes_of(steps: Sequence[DrawStep]) -> Tensor:
    return torch.stack([step.codes for step in steps], dim=1)


def codes_per_pass(
    draw: Callable[..., Iterator[SpeculativeStep]], expected: Sequence[Tensor], batch: int
) -> float:
    """Of pictures drawn so many at once; each must be the one expected."""
    total = 0
    for first in range(0, len(expected), batch):
        steps = list(draw(some_pictures(len(expected))[first : first + batch]))
        total += steps[-1].passes
        if not torch.equal(codes_of(steps), torch.cat(list(expected[first : first + batch]))):
            raise SystemExit(f"picture {first}, or one of the {batch} with it, is another than drawn plainly")
    return (GRID**2 - 1) * len(expected) / batch / total


def passes(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    model, loss = trained(options.noise, options.steps)
    print(f"noise {options.noise:g} of {LEVELS} levels: {loss:.2f} nats per code after {options.steps} steps")
    prompt_caches = PromptCaches(model)
    for setting, (guidance, sampling) in SETTINGS.items():
        given: dict[str, Any] = {
            "pad_id": PAD,
            "guidance": guidance,
            "sampling": sampling,
            "prompt_caches": prompt_caches,
        }
        expected = [
            codes_of(list(draw_steps(model, [picture], **given))) for picture in some_pictures(options.number)
        ]
        print(f"\n{setting + ', codes per pass by window':<46}" + "".join(f"{each:8}" for each in WINDOWS))
        ways = [(name, guess, 1) for name, guess in GUESSES.items()]
        for name, guess, batch in [*ways, ("the same, 4 pictures at once", by_newest, 4)]:
            found = [
                codes_per_pass(
                    partial(speculative_steps, model, window=window, guess=guess, **given), expected, batch
                )
                for window in WINDOWS
            ]
            print(f"  {name:<44}" + "".join(f"{number:8.2f}" for number in found), flush=True)


# --- what a pass costs ---


def a_pass(steps: Iterator[DrawStep]) -> Callable[[], DrawStep]:
    """A call that draws until another pass was run; a step of the plain loop is one."""

    def call() -> DrawStep:
        nonlocal waiting
        before = getattr(waiting, "passes", None)
        while getattr(waiting := next(steps), "passes", 0) == before:
            pass
        return waiting

    waiting = next(steps)
    return call


def cost_of_passes(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    model = prepare(random_model(options.preset, 0).to(getattr(torch, options.dtype)))
    config = model.config
    half = tuple(range(config.picture_tokens // 2))
    pictures = [
        Picture(prompt=tuple(range(1, 31)), seed=1, number=number, start=half)
        for number in range(options.pictures)
    ]
    prompt_caches = PromptCaches(model)

    def wrong(clues: Clues) -> Tensor:
        """As long as the real guess takes, and no window is used up soon."""
        return (by_newest(clues) + 1) % config.vq.codes

    calls = {"plain loop": a_pass(draw_steps(model, pictures, pad_id=0, prompt_caches=prompt_caches))}
    for window in WINDOWS:
        steps = speculative_steps(
            model, pictures, pad_id=0, prompt_caches=prompt_caches, window=window, guess=wrong
        )
        calls[f"window {window}"] = a_pass(steps)
    with torch.no_grad():
        regions = {name: cpu_region([call]) for name, call in calls.items()}
        timings, failures = interleaved(regions, Budget(options.seconds, 5, 40))
    for name, error in failures.items():
        print(f"{name}: {error!r}")
    base = timings["plain loop"].median
    print(f"{options.preset}, {options.dtype}, {options.pictures} pictures, {options.threads} threads")
    for name, timing in timings.items():
        print(f"  {name:<12} {timing.median:8.1f} ms  {timing.median / base:5.2f} of the plain loop's step")
    print("codes per pass with these random weights:")
    for window in WINDOWS[:2]:
        last = tuple(range(config.picture_tokens - 33))
        some = [
            Picture(prompt=picture.prompt, seed=1, number=picture.number, start=last) for picture in pictures
        ]
        steps = list(speculative_steps(model, some, pad_id=0, prompt_caches=prompt_caches, window=window))
        print(f"  window {window:<5} {32 / steps[-1].passes:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("passes", help="codes per pass of a small model trained here")
    command.add_argument("--noise", type=float, default=3.0, help="levels of brightness (%(default)s)")
    command.add_argument("--steps", type=int, default=500, help="of training (%(default)s)")
    command.add_argument("--number", type=int, default=8, help="pictures drawn (%(default)s)")
    command.set_defaults(run=passes)
    command = commands.add_parser("time", help="what a pass of random weights of full size takes")
    command.add_argument("--preset", choices=PRESETS, default="Janus-Pro-1B")
    command.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    command.add_argument("--pictures", type=int, default=1, help="drawn at once (%(default)s)")
    command.add_argument("--threads", type=int, default=os.cpu_count(), help="(%(default)s)")
    command.add_argument("--seconds", type=float, default=60.0, help="of measuring (%(default)s)")
    command.set_defaults(run=cost_of_passes)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
