"""Drawing: codes one after another from a prompt, guided by what the model would draw without one.

P pictures, R rows (P, or 2 P with guidance: the conditional ones first), V codes, T codes of a whole picture.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus.checks import require_number, require_whole
from janus.devices import free_memory
from janus.inference.cache import Prefix, StaticCache, bytes_per_position, join
from janus.inference.sampling import Noise, Sampling, choose, seeded_noise
from janus.inference.text import check_window
from janus.kernels.sample import WORD, guide, sample, seed_patterns
from janus.models.janus import Janus

# Without a batch size: so many pictures at once at most, and caches within this share of the free memory.
MOST_PICTURES = 16
MEMORY_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to draw: its prompt's ids, what its noise is keyed by, and the codes given beforehand."""

    prompt: tuple[int, ...]
    seed: int = 0
    number: int = 0
    start: tuple[int, ...] = ()


@dataclass(frozen=True)
class DrawStep:
    """What one step gave: logits (P, V) in float32 of both kinds of row, and the codes (P,) at `position`."""

    position: int
    conditional: Tensor
    unconditional: Tensor | None
    codes: Tensor


class Prefixes:
    """Prompts already read: each is computed once, however many pictures and batches continue it."""

    def __init__(self, model: Janus) -> None:
        self.model = model
        self.known: dict[tuple[int, ...], Prefix] = {}

    @torch.no_grad()
    def of(self, ids: tuple[int, ...]) -> Prefix:
        """The prefix that this sequence leaves, computed alone: no prompt beside it can change it."""
        if ids not in self.known:
            model = self.model
            cache = StaticCache(model.config.language, 1, len(ids), device=model.device, dtype=model.dtype)
            embeds = model.embed(torch.tensor([ids], device=model.device))
            hidden = model.hidden_states(embeds, None, cache)
            self.known[ids] = Prefix(cache.keys[:, 0], cache.values[:, 0], hidden[0, -1])
        return self.known[ids]

    def forget_all_but(self, wanted: Sequence[tuple[int, ...]]) -> None:
        """Drop prefixes that no picture to come will continue."""
        kept = set(wanted)
        self.known = {ids: prefix for ids, prefix in self.known.items() if ids in kept}


def unconditional(prompt: tuple[int, ...], pad_id: int) -> tuple[int, ...]:
    """What guidance compares with: all but the first and last token are padding, and attended to."""
    return (prompt[0], *([pad_id] * (len(prompt) - 2)), prompt[-1])


def draw_steps(
    model: Janus,
    pictures: Sequence[Picture],
    *,
    pad_id: int,
    guidance: float = 5.0,
    sampling: Sampling | None = None,
    noise: Noise | None = None,
    prefixes: Prefixes | None = None,
) -> Iterator[DrawStep]:
    """Draw pictures side by side, a code of each per step; guidance 1 needs and runs no unconditional rows.

    Pictures begin with the codes given in their `start`, of which all must have as many. `noise`, from
    position to (P, V) exponential noise, replaces what seed and number give. The arguments are checked at
    once.
    """
    require_number("guidance", guidance, "a finite number, 1 for none")
    begun = {len(picture.start) for picture in pictures}
    if len(begun) != 1:
        raise ValueError(
            f"pictures drawn together need as many codes given beforehand each, not {sorted(begun)}"
        )
    if begun.pop() >= model.config.picture_tokens:
        raise ValueError(f"all {model.config.picture_tokens} codes are given: there is nothing left to draw")
    for picture in pictures:
        check_window(model, len(picture.prompt), model.config.picture_tokens)
    return _steps(
        model, pictures, pad_id, guidance, sampling or Sampling(), noise, prefixes or Prefixes(model)
    )


@torch.no_grad()
def _steps(
    model: Janus,
    pictures: Sequence[Picture],
    pad_id: int,
    guidance: float,
    sampling: Sampling,
    noise: Noise | None,
    prefixes: Prefixes,
) -> Iterator[DrawStep]:
    guided = guidance != 1
    prompts = [picture.prompt for picture in pictures]
    if guided:
        prompts += [unconditional(picture.prompt, pad_id) for picture in pictures]
    rows = [prefixes.of(prompt) for prompt in prompts]
    start, end = len(pictures[0].start), model.config.picture_tokens
    cache = join(rows, model.config.language, room=end - 1)
    hidden = torch.stack([row.hidden for row in rows])

    def advance(codes: Tensor) -> Tensor:
        """Feed codes (P, S) to both kinds of row; -> the last hidden states (R, D)."""
        embeds = model.embed_codes(codes).repeat(2 if guided else 1, 1, 1)
        return model.hidden_states(embeds, None, cache)[:, -1]

    if start:
        hidden = advance(torch.tensor([picture.start for picture in pictures], device=model.device))
    chosen = _chooser(pictures, model, guidance, sampling, noise)
    for position in range(start, end):
        logits = model.image_logits(hidden).float()
        conditional, baseline = logits[: len(pictures)], logits[len(pictures) :] if guided else None
        codes = chosen(position, conditional, baseline)
        yield DrawStep(position, conditional, baseline, codes)
        if position + 1 < end:
            hidden = advance(codes[:, None])


def _chooser(
    pictures: Sequence[Picture], model: Janus, guidance: float, sampling: Sampling, noise: Noise | None
) -> Callable[[int, Tensor, Tensor | None], Tensor]:
    """From a position and its logits, (P, V) of both kinds of row, to codes (P,)."""
    seeds, numbers = [picture.seed for picture in pictures], [picture.number & WORD for picture in pictures]

    def at_once(position: int, conditional: Tensor, baseline: Tensor | None) -> Tensor:
        return sample(
            conditional,
            baseline,
            seeds=patterns,
            numbers=counted,
            position=torch.full((1,), position, device=model.device),
            guidance=guidance,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
        )

    def in_steps(position: int, conditional: Tensor, baseline: Tensor | None) -> Tensor:
        assert noise is not None
        combined = conditional if baseline is None else guide(conditional, baseline, guidance)
        return choose(combined, sampling, None if sampling.greedy else noise(position))

    # Top-p needs the whole distribution in order, and noise from elsewhere is not to be computed.
    if noise is None and not sampling.sorts:
        patterns = seed_patterns(seeds).to(model.device)
        counted = torch.tensor(numbers, device=model.device)
        return at_once
    if noise is None:
        noise = seeded_noise(seeds, numbers, model.config.vq.codes, model.device)
    return in_steps


def pictures_at_once(model: Janus, longest_prompt: int, guidance: float) -> int:
    """How many pictures to draw together: at most 16, with caches in at most half of the free memory."""
    rows = 1 if guidance == 1 else 2
    length = longest_prompt + model.config.picture_tokens
    bytes_each = rows * length * bytes_per_position(model.config.language, model.dtype)
    free = free_memory(model.device)
    return (
        MOST_PICTURES if free is None else max(1, min(MOST_PICTURES, int(free * MEMORY_SHARE) // bytes_each))
    )


def draw_codes(
    model: Janus,
    pictures: Sequence[Picture],
    *,
    pad_id: int,
    guidance: float = 5.0,
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    on_codes: Callable[[Tensor], None] | None = None,
) -> Iterator[Tensor]:
    """Codes (P', grid, grid) of the pictures in order, a batch at a time.

    Without a batch size it is `pictures_at_once`. `on_codes` is called after every step with the
    batch's codes so far, (P', steps).
    """
    if batch_size is not None:
        require_whole("batch_size", batch_size, least=1)
    if not pictures:
        return
    size = batch_size or pictures_at_once(model, max(len(picture.prompt) for picture in pictures), guidance)
    prefixes = Prefixes(model)
    for first in range(0, len(pictures), size):
        batch = pictures[first : first + size]
        to_come = [picture.prompt for picture in pictures[first:]]
        prefixes.forget_all_but([*to_come, *(unconditional(prompt, pad_id) for prompt in to_come)])
        given = torch.tensor([picture.start for picture in batch], dtype=torch.long, device=model.device)
        codes = torch.empty(len(batch), model.config.picture_tokens, dtype=torch.long, device=model.device)
        codes[:, : given.shape[1]] = given
        for step in draw_steps(
            model, batch, pad_id=pad_id, guidance=guidance, sampling=sampling, prefixes=prefixes
        ):
            codes[:, step.position] = step.codes
            if on_codes:
                on_codes(codes[:, : step.position + 1])
        yield codes.unflatten(1, (model.config.grid, model.config.grid))


@torch.no_grad()
def decode_codes(model: Janus, codes: Tensor) -> Tensor:
    """Codes (P, h, w) -> pixels (P, 3, H, W) in float32 on the CPU.

    One picture at a time: a convolution over several rounds differently, and truncation to 8 bits would show
    it.
    """
    return torch.cat([model.vq.decode(one).float().cpu() for one in codes.split(1)])
