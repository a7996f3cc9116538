"""The machine that measures: its name, its versions, and the rates that no code on it can exceed."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from janus import cpu

REPOSITORY = Path(__file__).resolve().parents[1]
# Results and prose cannot change a number, so they do not make a commit dirty.
UNMEASURED = (":(exclude)benchmarks/results", ":(exclude)*.md")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a row says of where it was measured. `cache` is the last cache before memory, in bytes."""

    name: str
    device: str
    threads: int
    cache: int
    torch: str
    triton: str
    commit: str


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second through memory, read and written, and FLOP a second of a matrix product by dtype.

    `upload` is bytes a second from the host to a GPU. `busy` is the share of the threads' time that the
    products took on a CPU, at worst: less than nearly all says that other work had the cores, too.
    """

    bandwidth: float
    rates: dict[torch.dtype, float]
    upload: float | None = None
    busy: float = 1.0


def slug(text: str) -> str:
    """Lower case, digits and hyphens: safe as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def cpu_model() -> str:
    """The processor as Linux names it, without the vendor's decorations: often without its generation."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "cpu")
    return re.sub(r"\((r|tm)\)| cpu|processor|@.*|\d+-core", "", named, flags=re.IGNORECASE).strip()


def cpu_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where Linux does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 10, "M": 20}
    texts = [file.read_text().strip() for file in sizes]
    return max((int(text[:-1]) << units[text[-1]] for text in texts if text[-1:] in units), default=32 << 20)


def resident(field: str) -> int:
    """Bytes of this process in memory now ("VmRSS") or at most so far ("VmHWM"); 0 where nobody says."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def current_commit() -> str:
    """The commit that is checked out, with -dirty if code differs from it; "unknown" without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--", ".", *UNMEASURED) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def identify(device: torch.device, commit: str | None = None) -> Machine:
    """This machine, measuring on `device` with as many threads as torch is set to now."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, described, cache = slug(properties.name), properties.name, properties.L2_cache_size
    else:
        described, cache = f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}", cpu_cache()
        name = f"{slug(described)}-{threads}-thread{'s' if threads > 1 else ''}"
    return Machine(
        name=name,
        device=described,
        threads=threads,
        cache=cache,
        torch=torch.__version__,
        triton=installed_version("triton"),
        commit=commit or current_commit(),
    )


def _best_seconds(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The quickest of the calls that fit in about `seconds`, three at least: ceilings are maxima."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()  # warm-up
    best, end, calls = once(), time.perf_counter() + seconds, 1
    while calls < 3 or time.perf_counter() < end:
        best, calls = min(best, once()), calls + 1
    return best


def measure_ceilings(device: torch.device, dtypes: Iterable[torch.dtype], *, small: bool = False) -> Ceilings:
    """Large copies and matrix products of random numbers, float32 ones without TF32; seconds in all.

    The bandwidth is the larger of a copy's, read and written bytes counted, and a sum's, which only reads:
    some CPUs read much faster than they copy. `small` is for tests: the figures mean nothing.
    """
    on_gpu = device.type == "cuda"
    seconds = 0.0 if small else 0.5
    numbers = 1 << 14 if small else (1 << 29 if on_gpu else 1 << 26)
    side = 64 if small else (8192 if on_gpu else 2048)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        # What a CPU multiplies number by number is better multiplied in float32: that is its ceiling.
        computed = {dtype: torch.float32 if cpu.widens(device, dtype) else dtype for dtype in dtypes}
        measured = {dtype: _matmul_rate(computed[dtype], side, device, seconds) for dtype in dtypes}
    finally:
        torch.set_float32_matmul_precision(precision)
    return Ceilings(
        _bandwidth(numbers, device, seconds),
        {dtype: rate for dtype, (rate, _) in measured.items()},
        _upload(numbers // 8, device, seconds) if on_gpu else None,  # pinned memory is scarce
        1.0 if on_gpu else min((busy for _, busy in measured.values()), default=1.0),
    )


def _upload(numbers: int, device: torch.device, seconds: float) -> float:
    source = torch.empty(numbers, pin_memory=True)
    target = torch.empty(numbers, device=device)
    return source.nbytes / _best_seconds(lambda: target.copy_(source, non_blocking=True), device, seconds)


def _bandwidth(numbers: int, device: torch.device, seconds: float) -> float:
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device, seconds)
    return max(copied, source.nbytes / _best_seconds(source.sum, device, seconds))


def _matmul_rate(dtype: torch.dtype, side: int, device: torch.device, seconds: float) -> tuple[float, float]:
    """-> FLOP a second, and the share of the threads' time that all calls together took."""
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    spent, start = time.process_time(), time.perf_counter()
    best = _best_seconds(lambda: left @ right, device, seconds)
    busy = (time.process_time() - spent) / (time.perf_counter() - start) / torch.get_num_threads()
    return 2 * side**3 / best, busy
