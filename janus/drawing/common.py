"""What drawing by codes and drawing by a flow have in common: the options, progress and previews."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from janus.checks import require_whole
from janus.inference.draw_batch import Picture
from janus.progress import Report

Preview = Callable[[list[Image.Image]], None]

OF_CODES = ("temperature", "top_k", "top_p", "speculate", "prefix", "rows")
OF_A_FLOW = ("steps", "method")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `Pipeline.draw` is told beside prompts and seed; None where nothing is said."""

    guidance: float | None = None
    batch_size: int | None = None
    size: int | tuple[int, int] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    speculate: int | None = None
    prefix: Any = None
    rows: int | None = None
    steps: int | None = None
    method: str | None = None

    def refuse(self, names: Sequence[str], reason: str) -> None:
        """ValueError for the first of these options that is given; the reason ends in a remedy."""
        for name in names:
            value = getattr(self, name)
            if value is not None:
                # Of a picture the value would say nothing, in many lines.
                shown = f"{name}={value!r}" if isinstance(value, int | float | str) else name
                raise ValueError(f"{shown} {reason}")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a drawing is followed: `progress` is what `Progress` takes, `preview` is called with pictures.

    It gets the unfinished ones after every `preview_every` parts (rows of codes, steps of a flow).
    """

    progress: bool | Report | None = None
    preview: Preview | None = None
    preview_every: int = 4

    def __post_init__(self) -> None:
        require_whole("preview_every", self.preview_every, least=1)
        if self.preview is not None and not callable(self.preview):
            raise ValueError(f"preview must be a function of a list of pictures, not {self.preview!r}")

    def show(self, done: int, total: int, pictures: Callable[[], list[Image.Image]]) -> None:
        """Preview what is there after `done` of `total` parts, if somebody wants to see it just then."""
        if self.preview and done < total and not done % self.preview_every:
            self.preview(pictures())


class Drawing(Protocol):
    """A model's way to draw."""

    def draw(self, pictures: Sequence[Picture], options: Options, watch: Watch) -> list[Image.Image]:
        """The pictures, in order; ValueError for what cannot be drawn, or an option of the other way."""

    def reconstruct(self, picture: Image.Image) -> Image.Image:
        """An RGB picture's center square, at the model's own size, through the model's latents and back."""
