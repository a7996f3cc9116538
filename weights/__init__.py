"""Checkpoints: the names of their tensors, and how they are found, read, loaded and saved."""

from janus.weights.load import load

__all__ = ["load"]
