"""Learning from what the model draws itself and a judge says of it, where right and wrong can be told.

Of each of a step's prompts it draws several pictures, at temperature 1 and without guidance: as it is trained
to. What came out better than the others of its prompt becomes more likely, what came out worse less. That is
GRPO (Shao et al., "DeepSeekMath", 2024) with one update for what is drawn, so that the ratio of probabilities
that it clips is 1, and without a reference model. Imitation teaches all pictures of a prompt and spends most
of what it learns on where things happen to stand; this teaches what makes a picture wrong.

P prompts of a step, K pictures of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from janus.inference.draw import draw_codes
from janus.inference.draw_batch import Picture
from janus.models.janus import Janus
from janus.processing.image import to_pictures
from janus.training.data.example import drawing_example
from janus.training.data.order import hashed
from janus.training.data.outline import Geometry
from janus.training.parts import eval_mode
from janus.training.recipe.learning import Reinforcement
from janus.training.weighted import Weighted, batches_of, prompt_room, weighted
from janus.training.worlds import shapes
from janus.training.worlds.shapes.draws import pick

if TYPE_CHECKING:
    from janus.training.run import Run

TRIES = 100  # prompts that are too long for a row are drawn anew
DECODED = 8  # pictures that the tokenizer decodes at once: on a CPU more take longer


def rollout(run: Run, settings: Reinforcement) -> Weighted:
    """Draw this process's share of the prompts of the run's next step, and have the pictures judged.

    They count as their advantages. Pictures of prompts of which all or none came out right teach nothing and
    are left out.
    """
    assert isinstance(run.model, Janus)  # the recipe was checked
    geometry, each_prompt = Geometry.of(run.model.config), settings.pictures
    wanted = tasks(run, settings)
    codes = draw(run, wanted)
    rewards = judge(run.model, codes, [task.drawing.spec for task in wanted])
    advantages = group_advantages(rewards.view(-1, each_prompt)).flatten()
    # A process with nothing to learn takes part in the exchange all the same: with a picture of no weight.
    kept = advantages.nonzero().flatten().tolist() or [0]
    examples = [
        # The seed, which only a flow needs, is the picture's number: in batches they are in another order.
        drawing_example(run.processor, wanted[each].drawing.caption, codes[each], geometry, seed=each)
        for each in kept
    ]
    drawn = settings.prompts * each_prompt
    right = run.place.summed(rewards.sum().to(run.place.device)) / drawn
    return Weighted(
        batches=weighted(batches_of(run, examples), advantages),
        labels=drawn * geometry.tokens / settings.weight,
        figures={"drawn_right": right},
    )


@dataclass(frozen=True)
class Task:
    """A picture to be drawn, the noise to draw it with, and a caption and scene that say what is right."""

    drawing: shapes.Drawing
    picture: Picture


def tasks(run: Run, settings: Reinforcement) -> list[Task]:
    """This process's share of the run's next step, all pictures of a prompt one after another.

    They are functions of the recipe's seed and the step: a run that goes on draws what it would have drawn.
    """
    found = []
    for number in range(run.place.rank, settings.prompts, run.place.size):
        seed = hashed("attempt", run.recipe.seed, run.step, number)
        drawing, prompt = _asked(run, settings, np.random.default_rng(seed))
        found += [
            Task(drawing, Picture(prompt=prompt, seed=seed, number=each)) for each in range(settings.pictures)
        ]
    return found


def _asked(
    run: Run, settings: Reinforcement, random: np.random.Generator
) -> tuple[shapes.Drawing, tuple[int, ...]]:
    """A drawing to be made and its prompt, which a row holds together with the codes; ValueError for none."""
    assert isinstance(run.model, Janus)
    limit, room = run.recipe.data.sequence_length, prompt_room(run)
    for _ in range(TRIES):
        color = None if settings.color is None or random.random() < 0.5 else settings.color
        category = pick(random, settings.of_color if color else settings.categories or shapes.CATEGORIES)
        drawing = shapes.drawing(random, category=category, color=color, side=run.model.config.picture_size)
        prompt = tuple(run.processor.draw_prompt(drawing.caption))
        if len(prompt) <= room:
            return drawing, prompt
    raise ValueError(
        f"data.sequence_length = {limit} leaves no room for what is drawn by reinforce: prompts have more "
        f"than {room} tokens, so raise it by {len(prompt) - room} or more"
    )


def draw(run: Run, wanted: Sequence[Task]) -> Tensor:
    """The codes (P K, grid, grid) of all at once, as the model is now, on the CPU."""
    assert isinstance(run.model, Janus)
    with eval_mode(run.model):
        (codes,) = draw_codes(
            run.model,
            [task.picture for task in wanted],
            pad_id=run.processor.tokenizer.pad_id,
            guidance=1.0,
            batch_size=len(wanted),
        )
    return codes.cpu()


@torch.no_grad()
def judge(model: Janus, codes: Tensor, wanted: Sequence[shapes.Spec]) -> Tensor:
    """1 for each picture (P K,) that is as wanted, else 0."""
    pictures = [
        picture
        for part in codes.split(DECODED)
        for picture in to_pictures(model.vq.decode(part.to(model.device)).float().cpu())
    ]
    right = [shapes.verify(np.asarray(picture), spec) for picture, spec in zip(pictures, wanted, strict=True)]
    return torch.tensor(right, dtype=torch.float32)


def group_advantages(rewards: Tensor) -> Tensor:
    """How far each picture's reward (P, K) is from the mean of its prompt's, in their standard deviations.

    0 where all are alike.
    """
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = centered.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(deviation > 0, centered / deviation, 0)
