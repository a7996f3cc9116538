"""The facts of the machine that `janus doctor` judges, each read when it is asked for."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from janus.checks import one_line

CACHED = (
    "janus",
    "sdxl-vae",
)  # what the names of models hold that are of use here; the latter is JanusFlow's


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it; `memory` in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True)
class TorchBuild:
    """What the installed torch was built for and what it can use here."""

    version: str
    cuda: str | None = None
    hip: str | None = None
    architectures: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    mps_built: bool = False
    mps_available: bool = False
    bfloat16: bool = False  # whether the device that a load takes computes it in hardware
    complaint: str = ""  # what torch warned of while it looked for a GPU

    @property
    def device(self) -> str:
        """The device that a load without `device` takes."""
        return "cuda" if self.gpus else "mps" if self.mps_available else "cpu"


@dataclass(frozen=True)
class Cache:
    """The Hugging Face cache: its folder, free bytes of its disk, the bytes of each model that is ours."""

    folder: Path
    writable: bool
    free: int
    models: Mapping[str, int]


class Machine:
    """The facts of the machine that this runs on. Reading one may raise: only its own check fails then."""

    @property
    def system(self) -> str:
        return platform.system()

    @property
    def processor(self) -> str:
        return platform.machine()

    @property
    def python(self) -> tuple[int, int, int]:
        return sys.version_info[:3]

    @cached_property
    def torch(self) -> TorchBuild:
        import torch

        from janus.devices import computes_bfloat16, resolve_device

        with warnings.catch_warnings(record=True) as complaints:
            warnings.simplefilter("always")
            available = torch.cuda.is_available()
        gpus = []
        for index in range(torch.cuda.device_count() if available else 0):
            properties = torch.cuda.get_device_properties(index)
            gpus.append(Gpu(properties.name, (properties.major, properties.minor), properties.total_memory))
        return TorchBuild(
            version=torch.__version__,
            cuda=torch.version.cuda,
            hip=getattr(torch.version, "hip", None),
            architectures=tuple(torch.cuda.get_arch_list()),
            gpus=tuple(gpus),
            mps_built=torch.backends.mps.is_built(),
            mps_available=torch.backends.mps.is_available(),
            bfloat16=computes_bfloat16(resolve_device()),
            complaint=str(complaints[0].message).splitlines()[0][:160] if complaints else "",
        )

    @property
    def translated(self) -> bool:
        """Whether this is an x86_64 Python on Apple silicon."""
        if (self.system, self.processor) != ("Darwin", "x86_64"):
            return False
        command = ["sysctl", "-n", "sysctl.proc_translated"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() == "1"

    @property
    def nvidia(self) -> str | None:
        """What shows, without torch, that there is an NVIDIA GPU."""
        driver = Path("/proc/driver/nvidia/version")
        if driver.exists():
            return driver_of(driver.read_text()) or str(driver)
        if Path("/dev/nvidia0").exists():
            return "/dev/nvidia0"
        command = shutil.which("nvidia-smi")
        if command is None:
            return None
        # nvidia-smi may be left over on a machine whose card is gone.
        listing = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30)
        return listing.stdout.strip().split("\n")[0] or None if listing.returncode == 0 else None

    @property
    def hidden(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    @property
    def compiler(self) -> str | None:
        """The C compiler that triton takes."""
        return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")

    def version(self, distribution: str) -> str | None:
        """The version of an installed distribution."""
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def absent(self) -> list[str]:
        """The packages of ours that cannot be found."""
        return [name for name in ("janus.kernels", "janus.weights") if importlib.util.find_spec(name) is None]

    def module(self, name: str) -> tuple[str | None, str | None]:
        """The version of a module (None: not installed) and what its import raised."""
        if importlib.util.find_spec(name) is None:
            return None, None
        version = self.version(name) or "of unknown version"
        try:
            return str(getattr(importlib.import_module(name), "__version__", version)), None
        except Exception as error:
            return version, one_line(error)

    @cached_property
    def cache(self) -> Cache:
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE).expanduser()
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        models = {}
        for model in sorted(folder.glob("models--*")):
            if any(name in model.name.lower() for name in CACHED):
                files = [path for path in model.rglob("*") if path.is_file() and not path.is_symlink()]
                models[model.name[len("models--") :].replace("--", "/")] = sum(
                    path.stat().st_size for path in files
                )
        return Cache(folder, os.access(existing, os.W_OK | os.X_OK), shutil.disk_usage(existing).free, models)

    @property
    def offline(self) -> bool:
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)

    @property
    def memory(self) -> int | None:
        """Bytes of the host's memory, or of the container's share of it."""
        if sys.platform == "win32":
            return _windows_memory()
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text().strip() if limit.exists() else "max"
        return min(total, int(text)) if text.isdigit() else total


def driver_of(text: str) -> str | None:
    """The driver's version in the text of /proc/driver/nvidia/version."""
    # "... x86_64 Kernel Module  535.54.03  ..." or "... Open Kernel Module for x86_64  580.65.06  ..."
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return f"driver {match[1]}" if match else None


def _windows_memory() -> int | None:
    import ctypes

    if sys.platform != "win32":
        return None
    kilobytes = ctypes.c_ulonglong()
    found = ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value * 1024 if found else None
