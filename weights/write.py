"""Files of tensors as others may read them."""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from janus.checks import one_line


def write_tensors(
    tensors: Mapping[str, Tensor], file: Path, *, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the permissions of any other: safetensors shuts out all but the owner.

    OSError, with the system's number, where it cannot be written.
    """
    file.touch()
    mode = file.stat().st_mode  # as the umask has it
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            file,
            metadata=metadata,
        )
    except SafetensorError as error:  # which is no OSError, not even where the disk is full
        failure = OSError(f"{file} cannot be written ({one_line(error)}): make room, or name another folder")
        failure.errno = system_errno(error)
        raise failure from error
    file.chmod(mode)


def system_errno(error: BaseException | None) -> int | None:
    """The first system error number among an exception and what caused it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        # What is written in Rust, as safetensors and hf_xet, reports the system's errors in words only.
        if match := re.search(r"os error (\d+)", str(error)):
            return int(match[1])
        error = error.__cause__ or error.__context__
    return None
