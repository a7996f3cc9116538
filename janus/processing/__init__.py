"""Words and pictures to tensors."""

from janus.processing.processor import Batch, Processor

__all__ = ["Batch", "Processor"]
