"""What a recipe reads: its sources opened, mixed at its ratio, and dealt out to the processes of a run.

B pictures of S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from janus.config import AnyConfig, JanusConfig
from janus.models.janus import Janus
from janus.models.vae import VAE
from janus.models.vq import VQ
from janus.processing.image import load_picture, square_picture, to_signed_pixels
from janus.processing.processor import Processor
from janus.training.data.documents import ATTEMPTS, Builder, Crop, Unreadable, crop_at
from janus.training.data.limits import Guard
from janus.training.data.loader import Loader, Places
from janus.training.data.mixture import Draw, Mixture, Part, Source
from janus.training.data.open import open_source
from janus.training.data.outline import Geometry
from janus.training.data.rows import Drawing, located
from janus.training.data.sources import World, hugging_face
from janus.training.parallel import Ranks, rows_of
from janus.training.parts import AnyModel
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import Data
from janus.training.recipe.sections import Source as Described
from janus.training.siglip import Pairs
from janus.training.worlds import shapes
from janus.training.worlds.shapes.draws import pick
from janus.training.worlds.shapes.raster import LEAST_SIDE

Read = TypeVar("Read")


def geometry_of(config: AnyConfig, vae: VAE | None) -> Geometry | None:
    """That of the pictures that a model draws; None of a JanusFlow without an autoencoder."""
    if isinstance(config, JanusConfig):
        return Geometry.of(config)
    return None if vae is None else Geometry.of_flow(config, vae.config)


def documents(
    recipe: Recipe, model: AnyModel, processor: Processor, place: Ranks, vae: VAE | None = None
) -> Loader:
    """The batches of a process: documents at the recipe's ratio, in rows of its length."""
    geometry = geometry_of(model.config, vae)
    builder = Builder(
        processor=processor,
        guard=Guard(recipe.data.sequence_length, recipe.data.overlong),
        geometry=geometry,
        prompt_dropout=recipe.data.prompt_dropout,
        crop=recipe.data.crop,
        unreadable=recipe.data.unreadable,
    )
    parts = parts_of(recipe.data, side=model.config.picture_size, vq=vq_of(model), geometry=geometry)
    return Loader(
        Mixture(parts, seed=recipe.seed, rank=place.rank, ranks=place.size),
        builder,
        rows=rows_of(recipe, place.size),
        length=recipe.data.sequence_length,
        packed=recipe.data.packing,
        workers=recipe.data.workers,
    )


def vq_of(model: AnyModel) -> VQ | None:
    """The tokenizer of a model that has one."""
    return model.vq if isinstance(model, Janus) else None


def parts_of(data: Data, *, side: int, vq: VQ | None = None, geometry: Geometry | None = None) -> list[Part]:
    """The sources of a recipe with their weights; `side` is that of pictures that worlds draw.

    With a ratio, sources of a task share its part of it.
    """
    weights = dict.fromkeys(("understanding", "text", "drawing"), 0.0)
    for each in data.sources:
        weights[each.task] += each.weight
    return [
        Part(
            open_described(each, side=side, vq=vq, geometry=geometry),
            each.weight
            if data.ratio is None
            else getattr(data.ratio, each.task) * each.weight / weights[each.task],
            each.task,
        )
        for each in data.sources
    ]


def open_described(
    source: Described, *, side: int, vq: VQ | None = None, geometry: Geometry | None = None
) -> Source:
    """The source that a recipe describes; raises FileNotFoundError or ValueError with the remedy."""
    if source.path is not None:
        return open_source(source.path, vq=vq, geometry=geometry)
    if source.dataset is not None:
        named = {} if source.columns is None else vars(source.columns)
        columns = {key: column for key, column in named.items() if column is not None}
        return hugging_face(source.dataset, split=source.split, columns=columns, task=source.task)
    if source.task == "text":
        return World(_shapes_text, "shapes (text)")
    if side < LEAST_SIDE:
        raise ValueError(
            f"the world of shapes needs pictures of {LEAST_SIDE} pixels, and the model's have {side}"
        )
    options: dict[str, Any] = {
        "side": side,
        "color": source.color,
        "categories": source.categories,
        "places": source.places,
        "nameless": source.nameless,
    }
    make: Callable[..., Mapping[str, Any]] = partial(_shapes_conversation, **options)
    if source.task == "drawing":
        make = partial(_shapes_drawing, **options)
    places = None if source.places == "grid" else source.places
    nameless = "nameless" if source.nameless else None
    described = ", ".join(filter(None, (source.task, *source.categories, source.color, places, nameless)))
    return World(make, f"shapes ({described})")


def _shapes_drawing(
    random: np.random.Generator,
    *,
    side: int,
    color: str | None,
    categories: Sequence[str],
    places: shapes.Places,
    nameless: bool,
) -> Mapping[str, Any]:
    category = pick(random, categories or shapes.CATEGORIES)
    drawn = shapes.drawing(
        random, category=category, side=side, color=color, places=places, nameless=nameless
    )
    return {"prompt": drawn.caption, "image": drawn.picture, "meaning": drawn.meaning}


def _shapes_conversation(
    random: np.random.Generator,
    *,
    side: int,
    color: str | None,
    categories: Sequence[str],
    places: shapes.Places,
    nameless: bool,
) -> Mapping[str, Any]:
    spoken = shapes.conversation(
        random, categories=categories, color=color, places=places, nameless=nameless, side=side
    )
    return _conversation(spoken.turns, spoken.picture)


def _shapes_text(random: np.random.Generator) -> Mapping[str, Any]:
    return _conversation([shapes.text(random)])


def _conversation(turns: Sequence[tuple[str, str]], picture: Any = None) -> Mapping[str, Any]:
    """A row of questions and answers; the first question shows the picture, if there is one."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    if picture is not None:
        text = {"type": "text", "text": messages[0]["content"]}
        messages[0]["content"] = [{"type": "image", "image": picture}, text]
    return {"messages": messages}


class Drawings(Generic[Read]):
    """Endless batches of what `read` makes of so many drawings' rows; resumed as a `Loader` is.

    In the place of a row that is `unreadable` comes another, where such rows are dropped.
    """

    def __init__(
        self,
        mixture: Mixture,
        read: Callable[[Sequence[Drawn]], Read],
        *,
        rows: int,
        workers: int = 0,
        unreadable: Unreadable = "error",
    ) -> None:
        self.mixture, self.read, self.rows, self.workers = mixture, read, rows, workers
        self.unreadable = unreadable
        self.place = 0
        self.dropped = 0

    def __iter__(self) -> Iterator[Read]:
        reads: DataLoader[Any] = DataLoader(
            _Batches(self.mixture, self.read, self.unreadable),
            batch_size=None,
            sampler=Places(self.place, self.rows),
            num_workers=self.workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # torch's default one is the training's: reading must not move it
        )
        for batch, dropped, error in reads:
            if error is not None:
                raise error
            self.place += self.rows
            self.dropped += dropped
            yield batch

    def left_out(self, place: Ranks) -> dict[str, float]:
        """How many rows of all processes were `dropped` so far, for the log; nothing where none was."""
        if self.unreadable == "error":
            return {}
        dropped = place.summed(torch.tensor(self.dropped, dtype=torch.float64))
        return {"dropped": float(dropped)} if dropped else {}

    def state_dict(self) -> dict[str, Any]:
        """The place in the order, with what the order depends on; in the form of a `Loader`'s."""
        return {
            "place": self.place,
            "dropped": self.dropped,
            "cut": 0,
            "identity": self.mixture.identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a state was taken. Raises ValueError where it belongs to another order of rows."""
        self.mixture.check_identity(state["identity"])
        self.place, self.dropped = state["place"], state["dropped"]


def _unchanged(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Drawn:
    """A drawing's row, and where in the order of the data it is."""

    row: Drawing
    draw: Draw


class _Batches(Dataset[tuple[Any, int, Exception | None]]):
    """What is made of the drawings at given places, and how many rows were dropped for it.

    Or the error to be raised in the main process.
    """

    def __init__(
        self, mixture: Mixture, read: Callable[[Sequence[Drawn]], Any], unreadable: Unreadable
    ) -> None:
        self.mixture, self.read, self.unreadable = mixture, read, unreadable

    def __getitem__(self, places: Sequence[int]) -> tuple[Any, int, Exception | None]:
        try:
            return self.read([self._row(self.mixture.draw(place)) for place in places]), 0, None
        except (ValueError, FileNotFoundError) as error:
            if self.unreadable == "error":
                return None, 0, error
        try:
            found = [self._readable(place) for place in places]
            return self.read([row for row, _ in found]), sum(dropped for _, dropped in found), None
        except (ValueError, FileNotFoundError) as error:
            return None, 0, error

    def _readable(self, place: int) -> tuple[Drawn, int]:
        """The row at a place or, where it cannot be read, another of its source; and how many could not."""
        draw = own = self.mixture.draw(place)
        for attempt in range(ATTEMPTS):
            try:
                row = self._row(draw)
                self.read([row])
                return row, attempt
            except (ValueError, FileNotFoundError) as error:
                last = error
                draw = self.mixture.instead(own, attempt + 1)
        name = self.mixture.parts[own.part].source.name
        raise ValueError(f"{name}: {ATTEMPTS} rows in turn cannot be read; of the last of them, {last}")

    def _row(self, draw: Draw) -> Drawn:
        row = self.mixture.parts[draw.part].source.row(draw.index, draw.seed)
        if not isinstance(row, Drawing) or row.picture is None:
            raise ValueError(f"{row.where}: no prompt with an image, which is all that can be learned here")
        return Drawn(row, draw)


@contextmanager
def _of(row: Drawing) -> Iterator[None]:
    """Errors within it say which row they are of."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise located(error, row.where) from error


def pictures(recipe: Recipe, size: int, place: Ranks) -> Drawings[Tensor]:
    """The batches of a process that trains a tokenizer: (B, 3, S, S) in [-1, 1], for S the `size`."""
    return _drawings(recipe, size, place, partial(squares, size=size, crop=recipe.data.crop))


def pairs(recipe: Recipe, model: AnyModel, processor: Processor, place: Ranks) -> Drawings[Pairs]:
    """The batches of a process that trains a vision tower by captions."""
    return _drawings(recipe, model.config.vision.image_size, place, partial(captioned, processor=processor))


def _drawings(
    recipe: Recipe, side: int, place: Ranks, read: Callable[[Sequence[Drawn]], Read]
) -> Drawings[Read]:
    return Drawings(
        Mixture(parts_of(recipe.data, side=side), seed=recipe.seed, rank=place.rank, ranks=place.size),
        read,
        rows=rows_of(recipe, place.size),
        workers=recipe.data.workers,
        unreadable=recipe.data.unreadable,
    )


def squares(drawn: Sequence[Drawn], *, size: int, crop: Crop) -> Tensor:
    """Pictures to be drawn, cropped to squares: (B, 3, S, S) in [-1, 1]."""
    found = []
    for each in drawn:
        with _of(each.row):
            picture = load_picture(each.row.picture)
            found.append(to_signed_pixels(square_picture(picture, size, at=crop_at(crop, each.draw))))
    return torch.stack(found)


def captioned(drawn: Sequence[Drawn], *, processor: Processor) -> Pairs:
    """Pictures as they are seen, and the prompts to draw them."""
    pixels, prompts = [], []
    for each in drawn:
        with _of(each.row):
            pixels.append(processor.image(each.row.picture))
            prompts.append(processor.draw_prompt(each.row.prompt))
    return Pairs(torch.stack(pixels), prompts, [each.row.meaning for each in drawn])
