"""`janus doctor`: a check-up of the installation. Each check is a function of facts; `Machine` reads them."""

import dataclasses
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from janus.apps.machine import Cache, Machine, TorchBuild
from janus.checks import one_line
from janus.config import FLOW_PRESETS, PRESETS, AnyConfig
from janus.files import require_place

Status = Literal["ok", "warning", "problem"]

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 6)
OLDEST_TRITON = (3, 3)  # as in janus.kernels.launch, which wants torch
# Which triton a torch release is built with; releases that are not listed are not judged.
TRITON_OF_TORCH = {(2, 11): (3, 6), (2, 13): (3, 7), (2, 14): (3, 8), (2, 15): (3, 9)}
PICTURE_ROWS, PICTURE_TOKENS = 2, 640  # a guided picture: two rows of a prompt and 576 picture tokens


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; the text of a warning or problem says what to do."""

    name: str
    status: Status
    text: str


@dataclass(frozen=True)
class ModelSize:
    """What a released model takes: bytes to download, numbers to hold, the preset that shapes its cache."""

    name: str
    download: float
    parameters: int
    config: AnyConfig

    def memory(self, bytes_per_number: int) -> int:
        """Bytes of the weights and of the keys and values of one guided picture."""
        cached = PICTURE_ROWS * PICTURE_TOKENS * self.config.language.layers * 2 * self.config.language.width
        return (self.parameters + cached) * bytes_per_number


MODELS = (
    ModelSize("Janus-1.3B and Janus-Pro-1B", 4.2e9, 2_076_636_811, PRESETS["Janus-Pro-1B"]),
    ModelSize("Janus-Pro-7B", 14.8e9, 7_407_773_323, PRESETS["Janus-Pro-7B"]),
    # With its autoencoder, which is stored in float32.
    ModelSize("JanusFlow-1.3B", 4.4e9, 2_033_772_304 + 83_653_863, FLOW_PRESETS["JanusFlow-1.3B"]),
)


def check_python(version: tuple[int, int, int], *, processor: str, translated: bool) -> Finding:
    """The interpreter; `translated` says that it runs on Apple silicon through Rosetta."""
    text = f"{'.'.join(map(str, version))} for {processor}"
    if version < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        return Finding("python", "problem", f"{text}: make an environment with {needed} or newer")
    if translated:
        return Finding(
            "python",
            "problem",
            f"{text} on an Apple-silicon Mac: install an arm64 Python, this one cannot use the GPU",
        )
    return Finding("python", "ok", text)


def check_janus(version: str | None, absent: Sequence[str] = ()) -> Finding:
    """The installed janus-torch distribution, and its packages that are `absent`."""
    if absent:
        text = (
            f"{' and '.join(absent)} cannot be found: the copy that was installed has text files where these "
            "are links; install a clone made by git (on Windows with -c core.symlinks=true), or the wheel"
        )
        return Finding("janus-torch", "problem", text)
    if version is None:
        text = "not installed, a bare source tree: `pip install -e .` adds the command `janus`"
        return Finding("janus-torch", "warning", text)
    return Finding("janus-torch", "ok", version)


def check_clash(other: str | None) -> Finding:
    """The version of PyPI's package `janus`, an asyncio queue with the same import name."""
    if other is None:
        return Finding("import name", "ok", "no other package is called janus")
    return Finding(
        "import name",
        "problem",
        f"the package janus {other} (an asyncio queue) has the same import name, and they clash: "
        "`pip uninstall janus`, then install this package again",
    )


def check_torch(
    build: TorchBuild, *, system: str, processor: str, nvidia: str | None, hidden: str | None
) -> Finding:
    """The build of torch against the hardware. `nvidia` tells how an NVIDIA card shows itself without torch;
    `hidden` is the environment's CUDA_VISIBLE_DEVICES."""
    status, text = _judged_build(build, system, processor, nvidia, hidden)
    return Finding("torch", status, f"{build.version}: {text}")


def _judged_build(
    build: TorchBuild, system: str, processor: str, nvidia: str | None, hidden: str | None
) -> tuple[Status, str]:
    if _release(build.version) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return "problem", f"janus needs {oldest} or newer: `pip install --upgrade torch`"
    names = ", ".join(gpu.name for gpu in build.gpus)
    if build.hip is not None:
        if build.gpus:
            return "ok", f"ROCm {build.hip}, {names}"
        return "warning", (
            f"built for ROCm {build.hip}, but it sees no GPU and runs on the CPU: check that the amdgpu "
            "driver is loaded and that you may open /dev/kfd (groups render and video)"
        )
    if build.cuda is not None:
        for gpu in build.gpus:
            if not runs_on(build.architectures, gpu.capability):
                card = ".".join(map(str, gpu.capability))
                return "problem", (
                    f"{gpu.name} has compute capability {card}, and this build is for "
                    f"{', '.join(build.architectures)}: install a build for it (the selector on pytorch.org)"
                )
        if build.gpus:
            return "ok", f"CUDA {build.cuda}, {names}"
        if nvidia is None:
            return "ok", f"built for CUDA {build.cuda}; no NVIDIA GPU here, so it runs on the CPU"
        if hidden is not None and hidden.strip() in ("", "-1"):
            return "warning", f"CUDA_VISIBLE_DEVICES={hidden!r} hides the GPU: unset it to use the GPU"
        return "problem", (
            f"built for CUDA {build.cuda}, and there is an NVIDIA GPU ({nvidia}), but torch cannot use it"
            f"{f' ({build.complaint})' if build.complaint else ''}: the driver is probably too old: "
            "update it, or install a torch for an older CUDA (the selector on pytorch.org)"
        )
    if nvidia is not None:
        return "problem", (
            f"built for the CPU only, and there is an NVIDIA GPU ({nvidia}): "
            "`pip uninstall torch`, then install the CUDA build (see the selector on pytorch.org)"
        )
    if system == "Darwin" and processor == "arm64":
        if build.mps_available:
            return "ok", "MPS"
        if build.mps_built:
            return (
                "warning",
                "MPS is built in but not available: update macOS; until then it runs on the CPU",
            )
        return (
            "warning",
            "built without MPS: `pip install --force-reinstall torch` brings a build with it",
        )
    return "ok", "runs on the CPU"


def runs_on(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether code for these architectures runs on a card: binaries (sm_) on the same major version from
    their minor on, PTX (compute_) on all newer ones; those ending in a letter on their own version alone."""
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if match is None:
            continue
        kind, major, minor, exact = match[1], int(match[2]), int(match[3]), bool(match[4])
        if (major, minor) == capability:
            return True
        if not exact and (major, minor) < capability and (kind == "compute" or major == capability[0]):
            return True
    return False


def check_dtype(build: TorchBuild) -> Finding:
    """The dtype that a load without `dtype` takes on the device it takes."""
    if build.bfloat16:
        return Finding("dtype", "ok", f"bfloat16 on {build.device}")
    return Finding("dtype", "ok", f"float32 on {build.device}, which has no fast bfloat16: twice the memory")


def check_triton(
    version: str | None,
    error: str | None,
    *,
    torch_version: str,
    system: str,
    processor: str,
    cuda: bool,
    compiler: str | None,
) -> Finding:
    """triton beside torch; `error` is what its import raised, `cuda` whether torch uses an NVIDIA card.

    `compiler`: the C compiler that it would take.
    """
    wanted = TRITON_OF_TORCH.get(_release(torch_version))
    pair = f"triton=={'.'.join(map(str, wanted))}.*" if wanted else "triton"
    if version is None:
        if cuda and (system, processor) == ("Linux", "x86_64"):
            text = f"missing, so the slower plain PyTorch runs: `pip install '{pair}'`"
            return Finding("triton", "warning", text)
        return Finding("triton", "ok", "absent; plain PyTorch runs in its place")
    if error is not None:
        text = (
            f"{version} cannot be imported ({error}), so the slower plain PyTorch runs: "
            f"`pip install --force-reinstall '{pair}'`"
        )
        return Finding("triton", "warning", text)
    if _release(version) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        text = (
            f"{version}, and kernels need {oldest} or later, so the slower plain PyTorch runs: upgrade torch"
        )
        return Finding("triton", "warning", text)
    if cuda and compiler is None:
        text = (
            f"{version}, but it finds no C compiler, which it launches kernels by, so the slower plain "
            "PyTorch runs: install gcc, or name a compiler in CC"
        )
        return Finding("triton", "warning", text)
    if wanted and _release(version) != wanted:
        text = f"{version}, but torch {torch_version} has another: `pip install '{pair}'` if kernels fail"
        return Finding("triton", "warning", text)
    return Finding("triton", "ok", version)


def check_torchvision(version: str | None, error: str | None) -> Finding:
    """torchvision, which janus does not need but which breaks others when it does not fit torch."""
    if version is None:
        return Finding("torchvision", "ok", "absent; not needed")
    if error is not None:
        return Finding(
            "torchvision",
            "warning",
            f"{version} cannot be imported beside this torch ({error}) and breaks timm and transformers: "
            "`pip uninstall torchvision`, or install the release that belongs to this torch",
        )
    return Finding("torchvision", "ok", version)


def check_cache(cache: Cache, *, offline: bool) -> Finding:
    """The Hugging Face cache: where it is, whether it can be written, what it holds of Janus."""
    held = ", ".join(f"{name} ({_gigabytes(size)})" for name, size in cache.models.items())
    text = f"{cache.folder} holds {held or 'no Janus model'}"
    if offline and not held:
        text += "; HF_HUB_OFFLINE is set: unset it to download one"
        return Finding("cache", "warning", text)
    if offline:
        return Finding("cache", "ok", f"{text}; HF_HUB_OFFLINE is set: nothing else can be loaded")
    if not cache.writable:
        text += "; it cannot be written: mend its permissions, or set HF_HOME to a folder of yours"
        return Finding("cache", "problem", text)
    return Finding("cache", "ok", text)


def check_disk(cache: Cache) -> Finding:
    """Free disk at the cache against the size of the downloads."""
    small = [model for model in MODELS if cache.free < model.download]
    text = f"{_gigabytes(cache.free)} free"
    if not small:
        return Finding("disk", "ok", text)
    lacks = ", ".join(f"{model.name} ({_gigabytes(model.download)})" for model in small)
    text += f", too little to download {lacks}"
    if len(small) < len(MODELS) or cache.models:
        return Finding("disk", "ok", text)
    return Finding("disk", "warning", f"{text}: make room, or set HF_HOME to a larger disk")


def check_memory(name: str, total: int | None) -> Finding:
    """Memory in bytes (None: unknown) against each model in bfloat16 and float32."""
    sizes = [(model, {"bfloat16": model.memory(2), "float32": model.memory(4)}) for model in MODELS]
    if total is None:
        needs = "; ".join(f"{model.name} take {_gigabytes(size['bfloat16'])}" for model, size in sizes)
        return Finding(name, "ok", f"unknown; in bfloat16 {needs}")
    parts = [
        f"{model.name}: "
        + ", ".join(
            f"{dtype} ({_gigabytes(count)}) {'fits' if count <= total else 'is too large'}"
            for dtype, count in size.items()
        )
        for model, size in sizes
    ]
    text = f"{_gigabytes(total)}; {'; '.join(parts)}"
    if any(min(size.values()) <= total for _, size in sizes):
        return Finding(name, "ok", text)
    return Finding(name, "warning", f"{text}: take a smaller model, or a larger machine")


def findings(machine: Machine) -> list[Finding]:
    """Every check of `machine`, in the order of the report. A check that raises is a problem of its own."""
    return [
        *_guarded("python", lambda: [_python(machine)]),
        *_guarded("janus-torch", lambda: [check_janus(machine.version("janus-torch"), machine.absent())]),
        *_guarded("import name", lambda: [check_clash(machine.version("janus"))]),
        *_torch_and_gpus(machine),
        *_guarded("torchvision", lambda: [check_torchvision(*machine.module("torchvision"))]),
        *_guarded("cache", lambda: [check_cache(machine.cache, offline=machine.offline)]),
        *_guarded("disk", lambda: [check_disk(machine.cache)]),
        *_guarded("memory", lambda: [check_memory("memory", machine.memory)]),
    ]


def _guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as error:
        return [Finding(name, "problem", f"the check failed: {one_line(error)}")]


def _python(machine: Machine) -> Finding:
    return check_python(machine.python, processor=machine.processor, translated=machine.translated)


def _torch_and_gpus(machine: Machine) -> list[Finding]:
    """The checks that need torch, or the one finding that it is not there."""
    try:
        build = machine.torch
    except Exception as error:
        text = f"cannot be imported ({one_line(error)}): `pip install --force-reinstall torch`"
        return [Finding("torch", "problem", text)]
    system, processor = machine.system, machine.processor

    def torch() -> Finding:
        nvidia, hidden = machine.nvidia, machine.hidden
        return check_torch(build, system=system, processor=processor, nvidia=nvidia, hidden=hidden)

    def triton() -> Finding:
        version, error = machine.module("triton")
        cuda = build.device == "cuda" and build.hip is None
        return check_triton(
            version,
            error,
            torch_version=build.version,
            system=system,
            processor=processor,
            cuda=cuda,
            compiler=machine.compiler,
        )

    return [
        *_guarded("torch", lambda: [torch()]),
        *_guarded("dtype", lambda: [check_dtype(build)]),
        *_guarded("triton", lambda: [triton()]),
        *(check_memory(f"memory of {gpu.name}", gpu.memory) for gpu in build.gpus),
    ]


def report(found: list[Finding], *, width: int = 100) -> str:
    """The findings as aligned text, wrapped at `width` columns, and a closing line that counts them."""
    column = max(len(finding.name) for finding in found) + 2
    lines = []
    for finding in found:
        head = f"{finding.status:<9}{finding.name:<{column}}"
        lines += textwrap.wrap(
            finding.text,
            width=max(width, len(head) + 40),
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )
    counts = _counts(found)
    total = [
        f"{counts[status]} {status}{'' if counts[status] == 1 else 's'}" for status in ("problem", "warning")
    ]
    return "\n".join([*lines, ", ".join(total)])


def run(json_path: Path | None = None) -> int:
    """Check this machine, print the report and write it to `json_path`; 1 if there is a problem, else 0.
    Raises OSError if the file cannot be written."""
    if json_path is not None:
        require_place(json_path, "--json")
    found = findings(Machine())
    print(report(found, width=shutil.get_terminal_size((100, 24)).columns))
    counts = _counts(found)
    if json_path is not None:
        rows = [dataclasses.asdict(finding) for finding in found]
        json_path.write_text(json.dumps({**counts, "findings": rows}, indent=2) + "\n", encoding="utf-8")
    return 1 if counts["problem"] else 0


def _counts(found: list[Finding]) -> dict[str, int]:
    statuses = [finding.status for finding in found]
    return {status: statuses.count(status) for status in ("ok", "warning", "problem")}


def _release(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as 2.13.0+cpu."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
