"""Which device and precision a model gets when its user names none. Nothing here runs at import."""

from pathlib import Path

import torch

from janus import cpu

MEMORY = Path("/proc/meminfo")
# Where a container's limit stands in cgroup v2 and v1, what is taken of it, and how much of that by files.
CONTAINERS = (
    (Path("/sys/fs/cgroup/memory.max"), "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), "memory.usage_in_bytes", "total_inactive_file"),
)


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device named, checked to be there; without a name cuda, then mps, then cpu.

    ValueError if it is absent.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda", "mps"):
            torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        remedy = "name one like 'cpu', 'cuda', 'cuda:1' or 'mps'"
        raise ValueError(f"device {device!r} is unknown or not available here: {remedy}") from error
    if chosen.type == "meta":
        raise ValueError("device 'meta' holds no numbers: weights cannot be loaded to it")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not available: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; `janus doctor` tells why"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r} is not available on this machine")
    return chosen


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware, so that it is no slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device.type == "cpu":
        supported = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, bool)() for name in supported)
    return False


def computed_in(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What products of that dtype are best computed in on that device: itself, or float32 in its place.

    Of a GPU that is not there it is itself.
    """
    if device.type == "cpu":
        return torch.float32 if cpu.widens(device, dtype) else dtype
    if device.type == "cuda" and not torch.cuda.is_available():
        return dtype
    known = device.type in ("cuda", "mps") and dtype == torch.bfloat16
    return torch.float32 if known and not computes_bfloat16(device) else dtype


def resolve_dtype(
    dtype: str | torch.dtype | None,
    device: torch.device,
    stored: torch.dtype = torch.float32,
    *,
    quantized: bool = False,
) -> torch.dtype:
    """The dtype named; without a name the stored one where the device computes it well, else float32.

    Beside `quantized` weights an x86 CPU always computes bfloat16 best: aten's kernels are written for it.
    """
    if dtype is None:
        if quantized and device.type == "cpu" and cpu.is_x86():
            return torch.bfloat16
        if stored == torch.bfloat16 and computes_bfloat16(device):
            return stored
        return stored if stored == torch.float16 and device.type in ("cuda", "mps") else torch.float32
    chosen = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise ValueError(f"dtype {dtype!r} is not supported: name bfloat16, float16, float32 or float64")
    if chosen == torch.float64 and device.type == "mps":
        raise ValueError("dtype float64 is not computed by mps: name float32")
    return chosen


def free_memory(device: torch.device) -> int | None:
    """Bytes that tensors on the device could still take, or None where it does not tell.

    What torch holds without using it counts as free, so that a first call does not change the answer to a
    second.
    """
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if device.type != "cpu":
        return None
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        for limit, used, cache in CONTAINERS:  # its share, where there is one
            text = limit.read_text().strip() if limit.exists() else "max"
            if text.isdigit():
                told = limit.with_name("memory.stat").read_text().splitlines()
                files = next(int(line.split()[1]) for line in told if line.startswith(f"{cache} "))
                # What was read from files and is kept for the next time gives way.
                taken = int(limit.with_name(used).read_text()) - files
                available = min(available, max(int(text) - taken, 0))
        return available
    except (OSError, StopIteration, ValueError, IndexError):
        return None
