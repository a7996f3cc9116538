"""Training of the whole family: `train(recipe, folder)`, by a recipe of a file or one that is shipped."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus.training.loop import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Imported at its first use: recipes and data are read without all that trains."""
    if name != "train":
        raise AttributeError(f"module 'janus.training' has no attribute {name!r}")
    from janus.training.loop import train

    return train
