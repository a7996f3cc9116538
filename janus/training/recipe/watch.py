"""The sections of a recipe that say what is seen of a run, what is kept, and what its model is drawn with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from janus.training.recipe.fields import RecipeError, Section, number, show
from janus.training.recipe.sections import Source

SCENES = 8


@dataclass(frozen=True, kw_only=True)
class PictureAsked(Section):
    """A `picture` that is asked a `question` about into the log."""

    picture: str
    question: str = "What is in the picture?"


@dataclass(frozen=True, kw_only=True)
class Log(Section):
    """What is seen while it runs.

    Numbers `every` so many steps. Every `samples_every` steps, and at the end, the `prompts` are drawn and
    the `pictures` asked about (of a VQ tokenizer: coded and decoded), and so many `scenes` of a `world`, each
    with its own question, the first of those that training never sees; nothing is, if it is left out.
    `tensorboard` writes for it as well, where it is installed.
    """

    every: int = number(10, least=1)
    samples_every: int | None = number(None, least=1)
    prompts: tuple[str, ...] = ()
    pictures: tuple[PictureAsked, ...] = ()
    world: Literal["shapes"] | None = None
    scenes: int = number(SCENES, least=1)
    tensorboard: bool = True

    def check(self) -> None:
        shown = ("prompts", "pictures", "world")
        if self.samples_every is not None and not any(getattr(self, name) for name in shown):
            text = f"{self.samples_every} has nothing to show: give prompts, pictures or a world"
            raise RecipeError(("samples_every",), text)
        if self.world is None and self.scenes != SCENES:
            raise RecipeError(("scenes",), "are of a world: give one, or leave them out")
        for name in shown:
            if getattr(self, name) and self.samples_every is None:
                raise RecipeError((name,), "is never shown: say how often in samples_every, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Checkpoints(Section):
    """Written `every` so many steps and at the end; the newest `keep` stay."""

    every: int = number(1000, least=1)
    keep: int = number(3, least=1)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Section):
    """An `evaluator` that runs `every` so many steps, and at the end, on up to `examples` of its `sources`.

    "loss" is the loss of examples that are not trained on, "shapes" the verified share of pictures and
    answers of that world's validation lists, or of a source's `color` alone. Left out of a recipe, nothing of
    it is built.
    """

    evaluator: Literal["loss", "shapes"]
    every: int = number(1000, least=1)
    examples: int = number(1000, least=1)
    sources: tuple[Source, ...] = ()

    def check(self) -> None:
        if not self.sources:
            text = (
                f"is missing beside evaluator = {show(self.evaluator)}: give its data, or take evaluate out"
            )
            raise RecipeError(("sources",), text)
        if self.evaluator == "shapes":
            self._check_lists()

    def _check_lists(self) -> None:
        """What the lists of the world cannot be is refused, for it would be passed over."""
        lists: set[tuple[str, str | None]] = set()
        for place, source in enumerate(self.sources):
            if source.world != "shapes":
                raise RecipeError(("sources", place, "world"), 'must be "shapes" for evaluator = "shapes"')
            if source.task == "text":
                text = '"text" has nothing to verify: give "drawing" or "understanding"'
                raise RecipeError(("sources", place, "task"), text)
            for name, usual in (("categories", ()), ("places", "grid"), ("nameless", False), ("weight", 1.0)):
                if getattr(source, name) != usual:
                    text = 'says nothing to evaluator = "shapes", whose lists are fixed: take it out'
                    raise RecipeError(("sources", place, name), text)
            own = (source.task, source.color)
            if own in lists:
                raise RecipeError(("sources", place), "is there twice: take one out")
            lists.add(own)


@dataclass(frozen=True, kw_only=True)
class Defaults(Section):
    """The guidance and temperature that the model is drawn with where nobody says otherwise.

    Meanwhile, for samples and scores, they are the first of `guidances` and of `temperatures`, of which a
    JanusFlow, which draws no codes, has none. When training
    is over, the checkpoint states the pair that draws most of so many `prompts` right, of the list that the
    world of shapes has for this (`janus.evaluation.defaults`); of one pair, that one.
    """

    guidances: tuple[float, ...] = number(least=0)
    temperatures: tuple[float, ...] = number((), least=0)
    prompts: int = number(210, least=1)

    def check(self) -> None:
        if not self.guidances:
            raise RecipeError(("guidances",), "is empty: give at least one to draw with")

    @property
    def first(self) -> tuple[float, float | None]:
        return self.guidances[0], self.temperatures[0] if self.temperatures else None

    @property
    def is_choice(self) -> bool:
        return max(len(self.guidances), len(self.temperatures)) > 1
