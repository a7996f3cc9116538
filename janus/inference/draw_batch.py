"""Pictures that are drawn together: their prompts' keys and values, their cache, noise and step.

P pictures, R rows (P, or 2 P with guidance: the conditional ones first), V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus.checks import require_guidance
from janus.inference.cache import PromptCache, StaticCache
from janus.inference.prepare import capacity_for
from janus.inference.sampling import Noise, Sampling, choose
from janus.inference.step import Step
from janus.inference.text import check_window, prefill_one
from janus.kernels.sample import WORD, exponential_noise, guide, sample, seeds_as_int64
from janus.models.janus import Janus
from janus.models.multimodal import MultimodalModel


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


class PromptCaches:
    """Prompts already read: each is computed once, however many pictures and batches continue it.

    The `DrawBatch` of the pictures before is kept, too, as long as it serves the next.
    """

    def __init__(self, model: MultimodalModel) -> None:
        self.model = model
        self.known: dict[tuple[int, ...], PromptCache] = {}
        self.batch: DrawBatch | None = None

    @torch.no_grad()
    def of(self, ids: tuple[int, ...]) -> PromptCache:
        """What this sequence leaves, computed alone: no prompt beside it can change it."""
        if ids not in self.known:
            embeds = self.model.embed(torch.tensor([ids], device=self.model.device))
            self.known[ids] = prefill_one(self.model, embeds)
        return self.known[ids]

    def forget_all_but(self, wanted: Sequence[tuple[int, ...]]) -> None:
        """Drop prompts that no picture to come will continue."""
        kept = set(wanted)
        self.known = {ids: prompt for ids, prompt in self.known.items() if ids in kept}


def unconditional(prompt: tuple[int, ...], pad_id: int) -> tuple[int, ...]:
    """What guidance compares with: all but the first and last token are padding, and attended to."""
    return (prompt[0], *([pad_id] * (len(prompt) - 2)), prompt[-1])


def check_pictures(model: Janus, pictures: Sequence[Picture], guidance: float) -> None:
    """Raise ValueError where pictures cannot be drawn together, or not by this model."""
    require_guidance(guidance)
    begun = {len(picture.start) for picture in pictures}
    if len(begun) != 1:
        raise ValueError(
            f"pictures drawn together need as many codes given beforehand each, not {sorted(begun)}"
        )
    if begun.pop() >= model.config.picture_tokens:
        raise ValueError(f"all {model.config.picture_tokens} codes are given: there is nothing left to draw")
    check_prompts(model, pictures)


def check_prompts(model: Janus, pictures: Sequence[Picture]) -> None:
    """Raise ValueError where a prompt and its picture exceed the context window."""
    for picture in pictures:
        check_window(model, len(picture.prompt), model.config.picture_tokens, drawn=True)


def begin(
    model: Janus,
    pictures: Sequence[Picture],
    pad_id: int,
    guidance: float,
    sampling: Sampling,
    noise: Noise | None,
    prompt_caches: PromptCaches,
) -> tuple[DrawBatch, Tensor]:
    """The batch that `prompt_caches` keeps, or a new one, with these pictures begun; and hidden (R, D)."""
    prompts = [picture.prompt for picture in pictures]
    if guidance != 1:
        prompts += [unconditional(picture.prompt, pad_id) for picture in pictures]
    rows = [prompt_caches.of(prompt) for prompt in prompts]
    longest = max(row.length for row in rows)
    batch = prompt_caches.batch
    if batch is None or not batch.serves(len(pictures), longest, guidance, sampling, noise):
        batch = prompt_caches.batch = None  # its memory, before the next one takes as much
        batch = prompt_caches.batch = DrawBatch(model, len(pictures), longest, guidance, sampling, noise)
    return batch, batch.begin(pictures, rows)


class DrawBatch:
    """Pictures that are drawn side by side: their cache, and the step that adds a code to each.

    It serves as many pictures as it was made for, batch after batch: what a GPU recorded for the first draws
    them all.
    """

    def __init__(
        self,
        model: Janus,
        count: int,
        longest_prompt: int,
        guidance: float,
        sampling: Sampling,
        noise: Noise | None = None,
    ) -> None:
        device = model.device
        self.model = model
        # The step holds this and not the batch: what holds itself stays in memory until Python looks for it.
        self.sampler = CodeSampler(model, count, guidance, sampling, noise)
        self.cache = StaticCache(
            model.language.config,
            self.sampler.rows,
            # The last code is chosen, never fed.
            capacity_for(model, longest_prompt + model.config.picture_tokens - 1),
            device=device,
            dtype=model.dtype,
        )
        self.step = Step(
            model,
            self.cache,
            tokens=torch.zeros(count, dtype=torch.long, device=device),
            place=torch.zeros(1, dtype=torch.long, device=device),
            feed=self.sampler.feed,
            pick=self.sampler.pick,
            recordable=noise is None,
        )

    def serves(
        self, count: int, longest_prompt: int, guidance: float, sampling: Sampling, noise: Noise | None
    ) -> bool:
        """Whether it was made for so many pictures, drawn alike, and has room for them."""
        room = longest_prompt + self.model.config.picture_tokens - 1
        return self.sampler.is_of(count, guidance, sampling, noise) and room <= self.cache.capacity

    def begin(self, pictures: Sequence[Picture], rows: list[PromptCache]) -> Tensor:
        """Continue these prompts by the codes that the pictures start with; -> the last hidden states."""
        self.cache.fill(rows)
        self.sampler.begin(pictures)
        start = len(pictures[0].start)
        self.step.place.fill_(start)
        hidden = torch.stack([row.hidden for row in rows])
        if start:
            codes = torch.tensor([picture.start for picture in pictures], device=self.model.device)
            hidden = self.model.hidden_states(self.sampler.feed(codes), None, self.cache)[:, -1]
        return hidden

    def shown(self, position: int, chosen: tuple[Tensor, ...]) -> DrawStep:
        """What was chosen, kept from being overwritten by the next step."""
        codes, logits = (tensor.clone() for tensor in chosen)
        return DrawStep(position, *self.sampler.split(logits), codes)


class CodeSampler:
    """Chooses the next code of each of P pictures: by guidance, and by the noise of its seed and number."""

    def __init__(
        self, model: Janus, count: int, guidance: float, sampling: Sampling, noise: Noise | None
    ) -> None:
        self.model, self.count = model, count
        self.guidance, self.sampling, self.noise = guidance, sampling, noise
        self.rows = count * (1 if guidance == 1 else 2)
        self.patterns = torch.zeros(count, dtype=torch.long, device=model.device)
        self.numbers = torch.zeros(count, dtype=torch.long, device=model.device)
        # Top-p needs the whole distribution in order, and noise from elsewhere is not to be computed.
        self.fused = noise is None and not sampling.sorts

    def is_of(self, count: int, guidance: float, sampling: Sampling, noise: Noise | None) -> bool:
        """Whether it chooses for so many pictures, and by these settings."""
        return (count, guidance, sampling, noise) == (self.count, self.guidance, self.sampling, self.noise)

    def begin(self, pictures: Sequence[Picture]) -> None:
        """Take these pictures' noise from here on."""
        self.patterns.copy_(seeds_as_int64([picture.seed for picture in pictures]))
        self.numbers.copy_(torch.tensor([picture.number & WORD for picture in pictures]))

    def feed(self, codes: Tensor) -> Tensor:
        """Codes (P,) or (P, S) -> embeddings (R, S, D) for both kinds of row."""
        codes = codes[:, None] if codes.ndim == 1 else codes
        return self.model.embed_codes(codes).repeat(self.rows // self.count, 1, 1)

    def pick(self, hidden: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        """-> the codes (P,), and the logits (R, V) that they were chosen by."""
        logits = self.model.image_logits(hidden).float()
        return self.choose(logits, place), logits

    def choose(self, logits: Tensor, place: Tensor) -> Tensor:
        """The codes (P,) that logits (R, V) give with the noise of a place, (1,)."""
        conditional, baseline = self.split(logits)
        if self.fused:
            return sample(
                conditional,
                baseline,
                seeds=self.patterns,
                numbers=self.numbers,
                position=place,
                guidance=self.guidance,
                temperature=self.sampling.temperature,
                top_k=self.sampling.top_k,
            )
        combined = conditional if baseline is None else guide(conditional, baseline, self.guidance)
        return choose(combined, self.sampling, self._noise(place))

    def _noise(self, place: Tensor) -> Tensor | None:
        if self.sampling.greedy:
            return None
        if self.noise is not None:
            return self.noise(int(place))
        return exponential_noise(self.patterns, self.numbers, place, self.model.config.vq.codes)

    def split(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits of the conditional rows and, with guidance, of the others."""
        return logits[: self.count], logits[self.count :] if self.guidance != 1 else None
