"""Files of tensors as others may read them."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(
    tensors: Mapping[str, Tensor], file: Path, *, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the permissions of any other: safetensors shuts out all but the owner."""
    file.touch()
    mode = file.stat().st_mode  # as the umask has it
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        file,
        metadata=metadata,
    )
    file.chmod(mode)
