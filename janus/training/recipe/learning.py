"""The sections of a recipe that say how pictures are learned: by an autoencoder, a flow, a judge."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from janus.training.recipe.fields import RecipeError, Section, check_name, check_names, number, show
from janus.training.vq.discriminator import least_side
from janus.training.worlds.shapes.mistakes import MISTAKABLE
from janus.training.worlds.shapes.sampling import CATEGORIES, COLORED
from janus.training.worlds.shapes.scene import COLORS, NEW_COLORS


@dataclass(frozen=True, kw_only=True)
class VQLearning(Section):
    """What the VQ tokenizer learns by, on pictures of `picture_size` pixels to a side.

    All other keys are those of `janus.training.vq.VQTraining`, which explains them; what that has beside
    them comes from other sections of the recipe (`Recipe.vq_training`). Without `start_latents` the
    codebook of random weights starts from latents, and a checkpoint's stays as it is.
    `discriminator_channels` and `discriminator_layers` are the discriminator's size.
    """

    picture_size: int = number(256, least=1)
    l1: float = number(0.0, least=0)
    l2: float = number(1.0, least=0)
    perceptual: float = number(0.0, least=0)
    adversarial: float = number(0.5, least=0)
    codebook: float = number(1.0, least=0)
    commitment: float = number(0.25, least=0)
    entropy: float = number(0.0, least=0)
    temperature: float = number(0.01, above=0)
    background: tuple[int, int, int] | None = number(None, least=0, most=255)
    foreground: float = number(1.0, above=0)
    tolerance: int = number(2, least=0)
    quantize_from: int = number(0, least=0)
    discriminator_from: int | None = number(None, least=0)
    decoder_only_from: int | None = number(None, least=0)
    start_latents: int | None = number(None, least=0)
    background_codes: int = number(1, least=0)
    revive_every: int | None = number(50, least=1)
    revive_far: bool = False
    merge_share: float | None = number(None, above=0, most=1)
    usage_decay: float = number(0.99, least=0, most=0.9999)
    discriminator_channels: int = number(64, least=1)
    discriminator_layers: int = number(3, least=1)

    def check(self) -> None:
        if self.decoder_only_from is not None and self.decoder_only_from < self.quantize_from:
            text = f"{self.decoder_only_from} is before quantize_from = {self.quantize_from}: raise it"
            raise RecipeError(("decoder_only_from",), text)
        if self.merge_share is not None and self.decoder_only_from is None:
            text = f"{self.merge_share} has no moment: codes merge at decoder_only_from; give it as well"
            raise RecipeError(("merge_share",), text)
        _check_discriminator(self)
        _refuse_without(self, "background", ("foreground", "tolerance", "background_codes", "merge_share"))
        _refuse_without(self, "entropy", ("temperature",))
        _refuse_without(self, "revive_every", ("revive_far",))
        if self.start_latents == 0:
            _refuse_without(self, "start_latents", ("background_codes",))


@dataclass(frozen=True, kw_only=True)
class VAELearning(Section):
    """What an autoencoder of latents learns by, on pictures of `picture_size` pixels to a side.

    All other keys are those of `janus.training.vae.VAETraining`, as `VQLearning`'s are its own. The scale of
    latents is no setting: it is measured when training is over.
    """

    picture_size: int = number(256, least=1)
    l1: float = number(0.0, least=0)
    l2: float = number(1.0, least=0)
    perceptual: float = number(0.0, least=0)
    adversarial: float = number(0.5, least=0)
    kl: float = number(1e-6, least=0)
    background: tuple[int, int, int] | None = number(None, least=0, most=255)
    foreground: float = number(1.0, above=0)
    tolerance: int = number(2, least=0)
    discriminator_from: int | None = number(None, least=0)
    discriminator_channels: int = number(64, least=1)
    discriminator_layers: int = number(3, least=1)

    def check(self) -> None:
        _check_discriminator(self)
        _refuse_without(self, "background", ("foreground", "tolerance"))


@dataclass(frozen=True, kw_only=True)
class FlowLearning(Section):
    """How a JanusFlow learns to draw.

    Times are logit-normal: their logits have the mean `time_mean` and the deviation `time_deviation`. What is
    aligned with the understanding encoder's features leaves the language model after so many blocks
    (`aligned_after`).
    """

    time_mean: float = number(0.0)
    time_deviation: float = number(1.0, above=0)
    aligned_after: int = number(6, least=1)


@dataclass(frozen=True, kw_only=True)
class Reinforcement(Section):
    """How a Janus learns from its own drawings beside the data: `janus.training.reinforce`.

    In every step it draws so many `pictures` of each of so many `prompts` of a `world`, of its `categories`
    (all if none are named) and training's combinations, and the world's verifier judges them. With a `color`
    half of the prompts, on average, name something of it. `weight` is what a code of these pictures counts
    beside one of the data's, at the better and the worse of its prompt.
    """

    world: Literal["shapes"]
    categories: tuple[str, ...] = ()
    color: str | None = None
    prompts: int = number(16, least=1)
    pictures: int = number(8, least=2)
    weight: float = number(1.0, above=0)

    @property
    def of_color(self) -> tuple[str, ...]:
        """The categories, as often as they are given, whose prompts name colors."""
        return tuple(each for each in self.categories or CATEGORIES if each in COLORED)

    def check(self) -> None:
        check_names("categories", self.categories, CATEGORIES)
        if self.color is not None:
            check_name(self.color, COLORS + NEW_COLORS, "color")
            if not self.of_color:
                text = f"{show(self.color)} is in no prompt of these categories: add {' or '.join(COLORED)}"
                raise RecipeError(("color",), text)


@dataclass(frozen=True, kw_only=True)
class Mistakes(Section):
    """How a Janus learns which words of a caption belong together: `janus.training.mistakes`.

    In every step there are so many `pairs`: a picture of a `world`, of its `categories` that can be mistaken
    (all of them if none are named) and of training's combinations, with its caption and one that is mistaken.
    `weight` is what a pair's loss counts, in the mean over them.
    """

    world: Literal["shapes"]
    categories: tuple[str, ...] = ()
    pairs: int = number(16, least=1)
    weight: float = number(1.0, above=0)

    def check(self) -> None:
        check_names("categories", self.categories, MISTAKABLE)


def _check_discriminator(learning: VQLearning | VAELearning) -> None:
    """RecipeError where it could not judge pictures of this size, or where keys speak of it and it is off."""
    if learning.discriminator_from is None:
        names = ("discriminator_channels", "discriminator_layers")
        # An adversarial of 0 says the same.
        _refuse_without(
            learning, "discriminator_from", (*names, "adversarial") if learning.adversarial else names
        )
        return
    least = least_side(learning.discriminator_layers)
    if learning.picture_size < least:
        layers = f"discriminator_layers = {learning.discriminator_layers}"
        text = f"{learning.picture_size} is too small for {layers}: give {least} or more, or fewer layers"
        raise RecipeError(("picture_size",), text)


def _refuse_without(section: VQLearning | VAELearning, needed: str, names: tuple[str, ...]) -> None:
    """RecipeError for a key of these that is given and says nothing, where the one that it needs is off."""
    if getattr(section, needed):
        return
    for each in fields(section):
        if each.name in names and getattr(section, each.name) != each.default:
            raise RecipeError(
                (each.name,), f"says nothing without {needed}: give that as well, or take this out"
            )
