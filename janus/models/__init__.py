"""The models as plain modules, tensors to tensors: they know nothing of loops, files or devices."""
