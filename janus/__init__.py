"""The Janus family of unified multimodal models in plain PyTorch: one language model that sees and draws.

pipe = janus.load("deepseek-ai/Janus-Pro-1B")
pipe.ask("What is in the picture?", images="cat.png")
pipe.draw("a red circle left of a blue square", n=4, seed=7)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus import weights
    from janus.config import JanusConfig
    from janus.models.janus import Janus
    from janus.models.janusflow import JanusFlow
    from janus.pipeline import Pipeline, load
    from janus.processing.processor import Processor

__all__ = ["Janus", "JanusConfig", "JanusFlow", "Pipeline", "Processor", "load", "weights"]

_HOME = {
    "Janus": "janus.models.janus",
    "JanusConfig": "janus.config",
    "JanusFlow": "janus.models.janusflow",
    "Pipeline": "janus.pipeline",
    "Processor": "janus.processing.processor",
    "load": "janus.pipeline",
}


def __getattr__(name: str) -> Any:
    """Public names are imported at their first use: `janus doctor` must start where torch itself does not."""
    if name == "weights":
        return import_module("janus.weights")
    if name == "__version__":
        from importlib.metadata import version

        return version("janus-torch")
    if name not in _HOME:
        raise AttributeError(f"module 'janus' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
