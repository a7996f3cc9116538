"""How Janus and Janus-Pro draw: codes one after another, which the VQ tokenizer turns into pixels."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from janus.checks import require_guidance, require_whole
from janus.drawing.common import OF_A_FLOW, Options, Watch
from janus.inference.draw import decode_codes, draw_codes
from janus.inference.draw_batch import Picture
from janus.inference.sampling import Sampling
from janus.models.janus import Janus
from janus.processing.image import square_picture, to_pictures, to_signed_pixels
from janus.processing.processor import Processor
from janus.progress import Progress
from janus.weights.processor_config import read_generation_defaults

GUIDANCE, TEMPERATURE = 5.0, 1.0  # the original's, where a checkpoint does not name its own


class CodeDrawing:
    """See `janus.drawing.common.Drawing`. Pictures are truncated to 8 bits, as in the original."""

    def __init__(self, model: Janus, processor: Processor) -> None:
        self.model, self.processor = model, processor

    def draw(self, pictures: Sequence[Picture], options: Options, watch: Watch) -> list[Image.Image]:
        """A code of each picture is a step of progress; previews come after rows of codes."""
        options.refuse(
            OF_A_FLOW, "is for a JanusFlow, and this model draws one code after another: leave it out"
        )
        config, preset = self.model.config, read_generation_defaults(self.processor.files)
        self._check_size(options.size)

        def chosen(name: str, default: float) -> float:
            value = getattr(options, name)
            return preset.get(name, default) if value is None else value

        guidance = require_guidance(chosen("guidance", GUIDANCE))
        sampling = Sampling(
            temperature=chosen("temperature", TEMPERATURE), top_k=options.top_k, top_p=options.top_p
        )
        start = self._start(options.prefix, options.rows)
        drawn: list[Image.Image] = []
        total = len(pictures) * (config.picture_tokens - len(start))
        with Progress(total, "code", watch.progress) as bar:

            def on_codes(codes: Tensor) -> None:
                bar.advance(len(codes))
                complete, beyond = divmod(codes.shape[1], config.grid)
                if not beyond:
                    known = codes.unflatten(1, (complete, config.grid))
                    watch.show(complete, config.grid, lambda: self._unfinished(known))

            for codes in draw_codes(
                self.model,
                [replace(picture, start=start) for picture in pictures],
                pad_id=self.processor.tokenizer.pad_id,
                guidance=guidance,
                sampling=sampling,
                batch_size=options.batch_size,
                speculate=options.speculate,
                on_codes=on_codes,
            ):
                drawn += to_pictures(decode_codes(self.model, codes))
        return drawn

    def reconstruct(self, picture: Image.Image) -> Image.Image:
        """Through the VQ tokenizer and back."""
        square = square_picture(picture, self.model.config.picture_size)
        return to_pictures(decode_codes(self.model, self._encode(square)))[0]

    @torch.no_grad()
    def _encode(self, square: Image.Image) -> Tensor:
        return self.model.vq.encode(to_signed_pixels(square)[None].to(self.model.device))

    def _check_size(self, size: int | tuple[int, int] | None) -> None:
        own = self.model.config.picture_size
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        fits = len(sides) == 2 and all(isinstance(side, Integral) and side == own for side in sides)
        if size is not None and not fits:
            raise ValueError(
                f"size {size!r} cannot be drawn: "
                f"this model draws {own} x {own} pixels only; resize afterwards"
            )

    def _start(self, prefix: Any, rows: int | None) -> tuple[int, ...]:
        """The codes of the first `rows` rows of the picture `prefix`; none without either."""
        if prefix is None and rows is None:
            return ()
        if prefix is None or rows is None:
            raise ValueError("prefix and rows go together: a picture, and how many rows of its codes to keep")
        grid, size = self.model.config.grid, self.model.config.picture_size
        require_whole("rows", rows)
        if not 1 <= rows < grid:
            raise ValueError(
                f"rows must be from 1 to {grid - 1}, not {rows}: the picture has {grid} rows of codes"
            )
        picture = self.processor.image.open(prefix)
        if picture.size != (size, size):
            raise ValueError(
                f"the prefix is {picture.width} x {picture.height}, and this model draws {size} x {size} "
                "pixels only: resize it first"
            )
        return tuple(self._encode(picture)[0, :rows].flatten().tolist())

    def _unfinished(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of which only the first rows of codes are known, the rest gray."""
        size = self.model.config.picture_size
        pictures = []
        for part in to_pictures(decode_codes(self.model, codes)):
            whole = Image.new("RGB", (size, size), (127, 127, 127))
            whole.paste(part, (0, 0))
            pictures.append(whole)
        return pictures
