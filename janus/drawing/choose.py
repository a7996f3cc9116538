"""Which way a model draws, and which autoencoder it draws with."""

from pathlib import Path

from janus.config import JanusFlowConfig
from janus.drawing.codes import CodeDrawing
from janus.drawing.common import Drawing
from janus.drawing.flow import FlowDrawing
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.vae import VAE
from janus.processing.processor import Processor
from janus.weights.config_files import read_config
from janus.weights.vae import RELEASED, own_vae

AnyVAE = VAE | str | Path  # an autoencoder, or the folder or hub id of one


def choose_drawing(
    model: Janus | JanusFlow, processor: Processor, vae: AnyVAE | None = None, *, token: str | None = None
) -> Drawing:
    """By codes or by a flow; a flow without an autoencoder takes the one that the released model has.

    ValueError for an autoencoder that the model has no use for, or whose latents are others than the flow's.
    """
    if isinstance(model, JanusFlow):
        return FlowDrawing(model, processor, RELEASED if vae is None else vae, token=token)
    if vae is not None:
        raise ValueError(_needless(vae))
    return CodeDrawing(model, processor)


def choose_vae(folder: Path, vae: str | Path | None) -> str | Path | None:
    """The autoencoder named, else that in a JanusFlow's own folder; None where there is neither.

    ValueError where one is named for a model that has no use for it, before any weight is read.
    """
    if isinstance(read_config(folder)[0], JanusFlowConfig):
        return own_vae(folder) if vae is None else vae
    if vae is not None:
        raise ValueError(_needless(vae))
    return None


def _needless(vae: AnyVAE) -> str:
    shown = type(vae).__name__ if isinstance(vae, VAE) else vae
    return f"vae={shown} is for a JanusFlow, and this model has its own picture tokenizer: leave it out"
