"""How the learning rate changes: a share of it for every step, a pure function.

Sources: cosine, Loshchilov and Hutter, "SGDR" (2017); WSD (warm-up, stable, decay), Hu et al., "MiniCPM"
(2024), with the linear decay of Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed
Training Durations" (2024).
"""

import math

from janus.training.recipe.sections import Schedule


def factor(step: int, schedule: Schedule, steps: int) -> float:
    """What the rate is multiplied by at `step`, from 0, of a run of `steps`.

    Warm-up rises from 1 / warmup at step 0 to 1 at its last step, so that no step is spent at rate 0. A decay
    begins at 1 at the step after, and would reach `final` (0 if left out) at step `steps`, which is none any
    more. From there on the share is `final`.
    """
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    match schedule.kind:
        case "constant":
            return 1.0
        case "cosine":
            height = (1 + math.cos(math.pi * _share(step, schedule.warmup, steps))) / 2
        case "wsd":
            assert schedule.decay is not None  # else the schedule would not have been made
            height = 1 - _share(step, steps - schedule.decay, steps)
    return height + (schedule.final or 0.0) * (1 - height)


def _share(step: int, begin: int, end: int) -> float:
    """How much of the way from `begin` to `end` is behind a step: 0 to 1."""
    return 1.0 if step >= end else max(step - begin, 0) / (end - begin)
