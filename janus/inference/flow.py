"""Drawing by a rectified flow: noise follows the model's velocity until it is the latents of a picture.

P pictures, R rows (P, or 2 P with guidance: the conditional ones first), L tokens of a prompt, c channels of
a latent, h and w its sides, T = h/2 * w/2 its tokens. Time runs from 0, noise, to 1. Source: Liu et al.,
"Flow straight and fast: learning to generate and transfer data with rectified flow" (2022).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from janus.checks import NOT_NUMBERS, require_guidance, require_whole
from janus.config import LATENT_PATCH
from janus.inference.batch import max_batch_size
from janus.inference.cache import join
from janus.inference.draw_batch import Picture, PromptCaches
from janus.inference.text import check_window
from janus.kernels.sample import WORD, philox, philox_inputs, seeds_as_int64
from janus.models.janusflow import JanusFlow
from janus.models.vae import VAE

EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2}  # of the velocity, in a step of each method
RELEASED_STEPS = 30  # of Euler's method, which the original takes
LATENTS = 1  # Philox's last word of the noise of latents: that of codes has 0 there

Velocity = Callable[[Tensor, float], Tensor]  # latents (P, c, h, w) and their time -> the same shape


@dataclass(frozen=True, kw_only=True)
class FlowSampling:
    """How the flow is followed.

    "euler" is the original's method and evaluates the velocity once a step; "midpoint" and "heun", of second
    order, evaluate it twice: `steps` of them cost as much as twice as many of Euler's. Guidance other than 1
    doubles the rows of every evaluation. In 16 bits latents are rounded after each step, as in the
    original, for up to its 30 steps of Euler's method; beyond that they are in float32.
    """

    steps: int = RELEASED_STEPS
    guidance: float = 2.0
    method: str = "euler"

    def __post_init__(self) -> None:
        require_whole("steps", self.steps, least=1)
        object.__setattr__(self, "guidance", require_guidance(self.guidance))
        if self.method not in tuple(EVALUATIONS):
            raise ValueError(f"method must be one of {', '.join(EVALUATIONS)}, not {self.method!r}")

    @property
    def evaluations_per_step(self) -> int:
        return EVALUATIONS[self.method]

    @property
    def evaluations(self) -> int:
        """How often the velocity of a picture is evaluated: what its time is proportional to."""
        return self.steps * self.evaluations_per_step


@dataclass(frozen=True)
class FlowStep:
    """After `number` steps: latents (P, c, h, w) at `time`, and where a straight line from there would end.

    The latter, `predicted`, is what a preview shows; after the last step it is the latents.
    """

    number: int
    time: float
    latents: Tensor
    predicted: Tensor


def normal_noise(seeds: Sequence[int], numbers: Sequence[int], count: int) -> Tensor:
    """(P, count) float32 on the CPU, standard normal: a function of (seed, picture's number, place) alone.

    Philox as for codes (`janus.kernels.sample`), and Box and Muller's transform of pairs of its words, in
    float64, so that every device begins with the same numbers.
    """
    rows = torch.tensor([number & WORD for _, number in zip(seeds, numbers, strict=True)], dtype=torch.int64)
    key, (counter, position, number, last) = philox_inputs(seeds_as_int64(seeds), rows, 0, count)
    words = philox(key, (counter, position, number, last + LATENTS))
    uniform = (torch.stack(words, dim=-1).double() + 0.5) * 2.0**-32  # within (0, 1)
    radius = (-2 * uniform[..., 0::2].log()).sqrt()
    angle = 2 * math.pi * uniform[..., 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.flatten(1)[:, :count].float()


def integrate(velocity: Velocity, latents: Tensor, sampling: FlowSampling) -> Iterator[FlowStep]:
    """Follow a velocity from time 0 to 1 in equal steps; its sizes are those of `latents`.

    As in the original, latents and the length of a step are in the dtype of `latents`.
    """
    steps = sampling.steps
    length = latents.new_tensor(1 / steps)
    for number in range(steps):
        time = number / steps
        slope = velocity(latents, time)
        if sampling.method == "midpoint":
            slope = velocity(latents + length / 2 * slope, (number + 0.5) / steps)
        elif sampling.method == "heun":
            slope = (slope + velocity(latents + length * slope, (number + 1) / steps)) / 2
        last = number + 1 == steps
        before, latents = latents, latents + length * slope
        predicted = latents if last else before + (1 - time) * slope
        yield FlowStep(number + 1, (number + 1) / steps, latents, predicted)


class GuidedVelocity:
    """The velocity of pictures drawn side by side, from the keys and values of their prompts.

    These are computed once, each prompt alone, and stay in the cache; what an evaluation adds is forgotten.
    The unconditional rows see of the prompt its first token only, but stand where the others do.
    """

    def __init__(
        self,
        model: JanusFlow,
        pictures: Sequence[Picture],
        guidance: float,
        tokens: int,
        prompt_caches: PromptCaches,
    ) -> None:
        self.model, self.guidance = model, guidance
        prompts = [seen(picture.prompt) for picture in pictures]
        starts = [len(prompt) for prompt in prompts]
        if guidance != 1:
            prompts += [prompt[:1] for prompt in prompts]
            starts *= 2
        rows = [prompt_caches.of(prompt) for prompt in prompts]
        self.cache = join(rows, model.language.config, 1 + tokens)
        self.length = self.cache.length
        self.starts = torch.tensor(starts, device=model.device)
        self.repeats = len(rows) // len(pictures)

    def __call__(self, latents: Tensor, time: float) -> Tensor:
        """(P, c, h, w) at a time in [0, 1] -> the same shape."""
        rows = latents.repeat(self.repeats, 1, 1, 1)
        # In the dtype of the latents, as the original has it.
        times = torch.full((len(rows),), 1000.0 * time, device=rows.device).to(rows.dtype)
        try:
            velocity = self.model.velocity_after(self.cache, rows, times, start=self.starts)
        finally:
            self.cache.truncate(self.length)
        if self.repeats == 1:
            return velocity
        conditional, unconditional = velocity.chunk(2)
        return guide(conditional, unconditional, self.guidance)


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on velocities, rounded as in the original."""
    return guidance * conditional - (guidance - 1.0) * unconditional


def seen(prompt: tuple[int, ...]) -> tuple[int, ...]:
    """What of a prompt the model reads: the last token only marks the place where the time's stands."""
    return prompt[:-1]


def flow_steps(
    model: JanusFlow,
    pictures: Sequence[Picture],
    *,
    size: tuple[int, int],
    sampling: FlowSampling | None = None,
    noise: Tensor | None = None,
    prompt_caches: PromptCaches | None = None,
) -> Iterator[FlowStep]:
    """Draw pictures side by side, latents of (h, w) = `size` each; guidance 1 runs no unconditional rows.

    `noise` (P, c, h, w) replaces what seeds and numbers give. The arguments are checked at once, the work is
    done as the steps are asked for. Raises ValueError for what cannot be drawn.
    """
    shape = _checked_shape(model, pictures, size)
    if noise is None:
        seeds, numbers = zip(*((picture.seed, picture.number) for picture in pictures), strict=True)
        noise = normal_noise(seeds, numbers, math.prod(shape)).unflatten(1, shape)
    elif noise.shape != (len(pictures), *shape):
        raise ValueError(f"noise must be {(len(pictures), *shape)}, not {tuple(noise.shape)}")
    return _steps(model, pictures, sampling or FlowSampling(), noise, prompt_caches or PromptCaches(model))


@torch.no_grad()
def _steps(
    model: JanusFlow,
    pictures: Sequence[Picture],
    sampling: FlowSampling,
    noise: Tensor,
    prompt_caches: PromptCaches,
) -> Iterator[FlowStep]:
    tokens = _tokens(noise.shape[2:])
    velocity = GuidedVelocity(model, pictures, sampling.guidance, tokens, prompt_caches)
    # The original sums in the model's dtype. In 16 bits the addends of many steps are lost beside the sum: of
    # 400 steps half of the way.
    as_released = sampling.method == "euler" and sampling.steps <= RELEASED_STEPS
    dtype = model.dtype if as_released else torch.float32
    for step in integrate(velocity, noise.to(model.device, dtype), sampling):
        if step.number == 1 and not bool(step.latents.isfinite().all()):
            raise ValueError(f"the velocity contains NaN or infinity: {NOT_NUMBERS}")
        yield step


def draw_latents(
    model: JanusFlow,
    pictures: Sequence[Picture],
    *,
    size: tuple[int, int],
    sampling: FlowSampling | None = None,
    batch_size: int | None = None,
    on_step: Callable[[FlowStep], None] | None = None,
) -> Iterator[Tensor]:
    """Latents (P', c, h, w) of the pictures in order, a batch at a time, of (h, w) = `size` each.

    A picture is a function of its prompt, seed and number, up to rounding, whatever is drawn beside it.
    Without a batch size, batches are alike, of at most 16, with caches in at most half of the free memory.
    `on_step` is called after every step, with what it gave for the batch: of each picture
    `sampling.evaluations_per_step` of `sampling.evaluations` are done then.
    """
    sampling = sampling or FlowSampling()
    if batch_size is not None:
        require_whole("batch_size", batch_size, least=1)
    if not pictures:
        return
    _checked_shape(model, pictures, size)
    many = batch_size
    if many is None:
        longest = max(len(picture.prompt) for picture in pictures)
        rows = 1 if sampling.guidance == 1 else 2
        most = max_batch_size(model, rows * (longest + _tokens(size)))
        # Every picture takes as many steps: batches of one size keep all of them full, the last one too.
        many = ceil(len(pictures) / ceil(len(pictures) / most))
    prompt_caches = PromptCaches(model)
    for first in range(0, len(pictures), many):
        to_come = [seen(picture.prompt) for picture in pictures[first:]]
        prompt_caches.forget_all_but([*to_come, *(prompt[:1] for prompt in to_come)])
        batch = pictures[first : first + many]
        for step in flow_steps(model, batch, size=size, sampling=sampling, prompt_caches=prompt_caches):
            if on_step:
                on_step(step)
        yield step.latents


@torch.no_grad()
def decode_latents(vae: VAE, latents: Tensor) -> Tensor:
    """Latents (P, c, h, w) of the flow -> pixels (P, 3, H, W) in float32 on the CPU.

    One picture at a time: a convolution over several rounds differently, and truncation to 8 bits would show
    it.
    """
    unscaled = latents.to(vae.device) / vae.config.scaling_factor
    return torch.cat([vae.decode(one).float().cpu() for one in unscaled.split(1)])


def _tokens(size: Sequence[int]) -> int:
    return math.prod(side // LATENT_PATCH for side in size)


def _checked_shape(
    model: JanusFlow, pictures: Sequence[Picture], size: tuple[int, int]
) -> tuple[int, int, int]:
    """(c, h, w); ValueError where the pictures cannot be drawn together, or not by this model."""
    if not pictures:
        raise ValueError("there are no pictures to draw: name at least one")
    for side in size:
        require_whole("a side of the latents", side, least=1)
    if len(size) != 2 or any(side % LATENT_PATCH for side in size):
        raise ValueError(f"size must be (h, w) in latents, multiples of {LATENT_PATCH}, not {size}")
    for picture in pictures:
        if picture.start:
            raise ValueError(
                f"a flow continues no codes: leave the picture's start empty, not {picture.start}"
            )
        if len(picture.prompt) < 2:
            raise ValueError(
                f"a prompt must have its first token and the picture's mark at least, not {picture.prompt}"
            )
        check_window(model, len(picture.prompt), _tokens(size), drawn=True)
    return (model.config.uvit.latent_channels, *size)
