"""How JanusFlow draws: a rectified flow to latents, which a separate autoencoder turns into pixels.

The autoencoder is a checkpoint of its own, found and loaded when the first picture needs it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from janus.checks import require_whole
from janus.config import LATENT_PATCH
from janus.drawing.common import OF_CODES, Options, Watch
from janus.inference.draw_batch import Picture
from janus.inference.flow import FlowSampling, FlowStep, decode_latents, draw_latents
from janus.models.janusflow import JanusFlow
from janus.models.vae import VAE, VAEConfig
from janus.processing.image import square_picture, to_pictures, to_signed_pixels
from janus.processing.processor import Processor
from janus.progress import Progress
from janus.weights.processor_config import read_generation_defaults
from janus.weights.vae import RELEASED, load_vae


class FlowDrawing:
    """See `janus.drawing.common.Drawing`. `vae` is an autoencoder, or the folder or hub id of one."""

    def __init__(
        self,
        model: JanusFlow,
        processor: Processor,
        vae: VAE | str | Path = RELEASED,
        *,
        token: str | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        self._vae = self._fitting(vae) if isinstance(vae, VAE) else vae
        self._token = token

    @property
    def vae(self) -> VAE:
        """The autoencoder, on the model's device and in its dtype as far as that serves; loaded once.

        Raises FileNotFoundError, ConnectionError or PermissionError where it cannot be had, ValueError where
        it is broken or belongs to other latents.
        """
        if not isinstance(self._vae, VAE):
            try:
                vae = load_vae(self._vae, device=self.model.device, dtype=self.model.dtype, token=self._token)
            except OSError as error:
                raise type(error)(f"{error}; vae= (or --vae) names its folder") from error
            self._vae = self._fitting(vae)
        return self._vae

    def draw(self, pictures: Sequence[Picture], options: Options, watch: Watch) -> list[Image.Image]:
        """An evaluation of the velocity of each picture is a step of progress; previews come after steps."""
        options.refuse(
            OF_CODES, "is for models that draw by codes, and a JanusFlow draws by a flow: leave it out"
        )
        names = ("steps", "guidance", "method")
        stated = read_generation_defaults(self.processor.files)
        chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        sampling = FlowSampling(**{name: stated[name] for name in names if name in stated} | chosen)
        if options.batch_size is not None:
            require_whole("batch_size", options.batch_size, least=1)
        if options.size is not None:
            _sides(options.size)
        if not pictures:
            return []
        size = self._latent_size(options.size)
        drawn: list[Image.Image] = []
        with Progress(len(pictures) * sampling.evaluations, "evaluation", watch.progress) as bar:

            def on_step(step: FlowStep) -> None:
                bar.advance(len(step.latents) * sampling.evaluations_per_step)
                watch.show(step.number, sampling.steps, lambda: self._finished(step.predicted))

            for latents in draw_latents(
                self.model,
                pictures,
                size=size,
                sampling=sampling,
                batch_size=options.batch_size,
                on_step=on_step,
            ):
                drawn += self._finished(latents)
        return drawn

    @torch.no_grad()
    def reconstruct(self, picture: Image.Image) -> Image.Image:
        """Through the autoencoder and back, by the likeliest latents: the mean of their distribution."""
        self._latent_size(None)  # raises where the two models' sizes do not fit
        square = to_signed_pixels(square_picture(picture, self.model.config.picture_size))
        mean = self.vae.encode(square[None].to(self.vae.device)).mean
        return to_pictures(self.vae.decode(mean), rounded=True)[0]

    def _finished(self, latents: Tensor) -> list[Image.Image]:
        # Rounded to 8 bits, as the original's README saves its pictures. Its demo truncates, which makes half
        # of all values darker by one.
        return to_pictures(decode_latents(self.vae, latents), rounded=True)

    def _latent_size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        return latent_size(self.model.config.picture_size if size is None else size, self.vae.config)

    def _fitting(self, vae: VAE) -> VAE:
        own, other = self.model.config.uvit.latent_channels, vae.config.latent_channels
        if own != other:
            raise ValueError(
                f"the flow's latents have {own} channels, and the autoencoder's {other}: name the one that "
                "the flow was trained with by vae= (or --vae)"
            )
        return vae


def latent_size(size: int | tuple[int, int], config: VAEConfig) -> tuple[int, int]:
    """(h, w) of the latents of pictures of so many pixels to a side, or of (height, width).

    ValueError where they are not cut into whole tokens.
    """
    sides = _sides(size)
    multiple = config.factor * LATENT_PATCH
    if any(side % multiple for side in sides):
        raise ValueError(
            f"size {size} cannot be drawn: one or two multiples of {multiple} are needed, "
            "the pixels that a token is across"
        )
    return sides[0] // config.factor, sides[1] // config.factor


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels; ValueError for what is no size of any picture."""
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    for side in sides:
        require_whole("a side of size", side, least=1)
    if len(sides) != 2:
        raise ValueError(f"size {size} cannot be drawn: give a side in pixels, or (height, width)")
    return sides
