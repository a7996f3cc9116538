"""The doctor's checks on made-up machines, and the whole of it on this one."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from janus.apps import doctor, machine
from janus.apps.doctor import Finding
from janus.apps.machine import Cache, Gpu, Machine, TorchBuild
from janus.kernels import launch

H100 = Gpu("NVIDIA H100", (9, 0), 80 * 10**9)
T4 = Gpu("Tesla T4", (7, 5), 16 * 10**9)
CPU_BUILD = TorchBuild("2.13.0+cpu")
CUDA_BUILD = TorchBuild("2.13.0", cuda="13.0", architectures=("sm_75", "sm_80", "sm_90"))
CACHE = Cache(Path("/home/me/.cache/huggingface/hub"), True, 500 * 10**9, {})


def torch_finding(build: TorchBuild, **facts: Any) -> Finding:
    defaults = {"system": "Linux", "processor": "x86_64", "nvidia": None, "hidden": None}
    return doctor.check_torch(build, **{**defaults, **facts})


def made_up(**facts: Any) -> Any:
    """A healthy Linux machine with an H100, but for the facts given; an exception for a fact is raised."""
    healthy = {
        "system": "Linux",
        "processor": "x86_64",
        "python": (3, 11, 7),
        "translated": False,
        "torch": replace(CUDA_BUILD, gpus=(H100,)),
        "nvidia": "driver 580.65",
        "hidden": None,
        "compiler": "/usr/bin/gcc",
        "cache": CACHE,
        "offline": False,
        "memory": 128 * 10**9,
        "version": {"janus-torch": "0.1.0"}.get,
        "absent": list,
        "module": lambda name: ("3.7.1", None) if name == "triton" else (None, None),
    }

    class MadeUp:
        def __getattr__(self, name: str) -> Any:
            fact = {**healthy, **facts}[name]
            if isinstance(fact, Exception):
                raise fact
            return fact

    return MadeUp()


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


# One check at a time


@pytest.mark.parametrize(
    ("version", "translated", "status"),
    [((3, 11, 7), False, "ok"), ((3, 9, 1), False, "problem"), ((3, 12, 0), True, "problem")],
)
def test_python(version: tuple[int, int, int], translated: bool, status: str) -> None:
    assert doctor.check_python(version, processor="x86_64", translated=translated).status == status


def test_janus_not_installed() -> None:
    assert doctor.check_janus("0.1.0").status == "ok"
    assert "pip install -e ." in doctor.check_janus(None).text
    assert Machine().absent() == []
    lost = doctor.check_janus("0.1.0", ["janus.weights"])
    assert (lost.status, "janus.weights cannot be found" in lost.text) == ("problem", True)


@pytest.mark.parametrize(
    ("build", "facts", "status", "words"),
    [
        (CPU_BUILD, {}, "ok", "runs on the CPU"),
        (CPU_BUILD, {"nvidia": "driver 580.65"}, "problem", "built for the CPU only"),
        (CUDA_BUILD, {}, "ok", "no NVIDIA GPU here"),
        (CUDA_BUILD, {"nvidia": "/dev/nvidia0"}, "problem", "driver is probably too old"),
        (CUDA_BUILD, {"nvidia": "/dev/nvidia0", "hidden": ""}, "warning", "CUDA_VISIBLE_DEVICES='' hides"),
        (replace(CUDA_BUILD, complaint="version 11040"), {"nvidia": "/dev/nvidia0"}, "problem", "11040"),
        (replace(CUDA_BUILD, gpus=(H100,)), {"nvidia": "driver 580"}, "ok", "NVIDIA H100"),
        (
            replace(CUDA_BUILD, gpus=(H100, Gpu("Tesla V100", (7, 0), 1))),
            {"nvidia": "driver 580"},
            "problem",
            "Tesla V100 has compute capability 7.0",
        ),
        (TorchBuild("2.13.0", hip="7.0"), {}, "warning", "groups render and video"),
        (TorchBuild("2.13.0", hip="7.0", gpus=(Gpu("MI300X", (9, 4), 1),)), {}, "ok", "ROCm 7.0, MI300X"),
        (TorchBuild("2.5.1"), {}, "problem", "2.6 or newer"),
        (TorchBuild("2.13.0", mps_built=True, mps_available=True), {"system": "Darwin", "processor": "arm64"},
         "ok", "MPS"),
        (TorchBuild("2.13.0", mps_built=True), {"system": "Darwin", "processor": "arm64"},
         "warning", "update macOS"),
        (TorchBuild("2.13.0"), {"system": "Darwin", "processor": "arm64"}, "warning", "built without MPS"),
    ],
)  # fmt: skip
def test_torch_against_the_hardware(
    build: TorchBuild, facts: dict[str, Any], status: str, words: str
) -> None:
    finding = torch_finding(build, **facts)
    assert finding.status == status
    assert words in finding.text
    assert finding.text.startswith(build.version)


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_80",), (8, 0), True),
        (("sm_80",), (8, 9), True),  # binaries run on later minors
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("sm_80", "compute_80"), (9, 0), True),  # PTX is compiled for later cards
        (("compute_90",), (8, 0), False),
        (("sm_90a",), (9, 0), True),
        (("compute_90a",), (10, 0), False),
        (("sm_100",), (10, 3), True),
        (("sm_120",), (10, 0), False),
        (("gfx942",), (9, 4), False),
        ((), (8, 0), False),
    ],
)
def test_architectures(architectures: tuple[str, ...], capability: tuple[int, int], runs: bool) -> None:
    assert doctor.runs_on(architectures, capability) is runs


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (replace(CUDA_BUILD, gpus=(H100,), bfloat16=True), "bfloat16 on cuda"),
        (replace(CUDA_BUILD, gpus=(T4,)), "float32 on cuda"),
        (TorchBuild("2.13.0", mps_available=True, bfloat16=True), "bfloat16 on mps"),
        (CPU_BUILD, "float32 on cpu"),
    ],
)
def test_dtype(build: TorchBuild, words: str) -> None:
    assert doctor.check_dtype(build).text.startswith(words)


@pytest.mark.parametrize(
    ("version", "error", "facts", "status", "words"),
    [
        ("3.7.1", None, {}, "ok", "3.7.1"),
        ("3.6.0", None, {}, "warning", "pip install 'triton==3.7.*'"),
        ("3.6.0", None, {"torch_version": "2.99.0"}, "ok", "3.6.0"),
        ("3.7.1", "ImportError: libcuda", {}, "warning", "ImportError: libcuda"),
        (None, None, {}, "warning", "pip install 'triton==3.7.*'"),
        (None, None, {"cuda": False}, "ok", "plain PyTorch"),
        (None, None, {"processor": "aarch64"}, "ok", "plain PyTorch"),
        (None, None, {"system": "Windows"}, "ok", "plain PyTorch"),
        ("3.7.1", None, {"compiler": None}, "warning", "install gcc"),
        ("3.7.1", None, {"compiler": None, "cuda": False}, "ok", "3.7.1"),
    ],
)
def test_triton(version: str | None, error: str | None, facts: Any, status: str, words: str) -> None:
    defaults: dict[str, Any] = {
        "torch_version": "2.13.0+cu130",
        "system": "Linux",
        "processor": "x86_64",
        "cuda": True,
        "compiler": "/usr/bin/gcc",
    }
    finding = doctor.check_triton(version, error, **{**defaults, **facts})
    assert finding.status == status
    assert words in finding.text


def test_a_triton_that_the_kernels_do_not_take() -> None:
    """Of torch 2.6: plain PyTorch runs, though nothing is missing or broken."""
    facts: dict[str, Any] = {
        "system": "Linux",
        "processor": "x86_64",
        "cuda": True,
        "compiler": "/usr/bin/gcc",
    }
    finding = doctor.check_triton("3.2.0", None, torch_version="2.6.0+cu124", **facts)
    assert (finding.status, "3.2.0, and kernels need 3.3 or later" in finding.text) == ("warning", True)
    assert doctor.check_triton("3.3.0", None, torch_version="2.7.0", **facts).status == "ok"
    assert doctor.OLDEST_TRITON == launch.OLDEST_TRITON


def test_torchvision() -> None:
    assert doctor.check_torchvision(None, None).status == "ok"
    assert doctor.check_torchvision("0.28.0", None).status == "ok"
    finding = doctor.check_torchvision("0.28.0", "RuntimeError: operator torchvision::nms does not exist")
    assert finding.status == "warning"
    assert "nms does not exist" in finding.text


@pytest.mark.parametrize(
    ("cache", "offline", "status", "words"),
    [
        (CACHE, False, "ok", "no Janus model"),
        (replace(CACHE, models={"a/Janus-Pro-1B": 4_180_000_000}), False, "ok", "a/Janus-Pro-1B (4.2 GB)"),
        (replace(CACHE, writable=False), False, "problem", "set HF_HOME"),
        (CACHE, True, "warning", "HF_HUB_OFFLINE is set: unset it"),
        (replace(CACHE, writable=False, models={"a/janus": 1}), True, "ok", "nothing else can be loaded"),
    ],
)  # fmt: skip
def test_cache(cache: Cache, offline: bool, status: str, words: str) -> None:
    finding = doctor.check_cache(cache, offline=offline)
    assert finding.status == status
    assert words in finding.text


@pytest.mark.parametrize(
    ("free", "models", "status", "words"),
    [
        (20e9, {}, "ok", "20.0 GB free"),
        (10e9, {}, "ok", "too little to download Janus-Pro-7B (14.8 GB)"),
        (4.3e9, {}, "ok", "too little to download Janus-Pro-7B (14.8 GB), JanusFlow-1.3B (4.4 GB)"),
        (
            1e9,
            {},
            "warning",
            "Janus-Pro-1B (4.2 GB), Janus-Pro-7B (14.8 GB), JanusFlow-1.3B (4.4 GB): make room",
        ),
        (1e9, {"a/janus": 1}, "ok", "1.0 GB free"),
    ],
)
def test_disk(free: float, models: dict[str, int], status: str, words: str) -> None:
    finding = doctor.check_disk(replace(CACHE, free=int(free), models=models))
    assert finding.status == status
    assert words in finding.text


@pytest.mark.parametrize(
    ("total", "status", "words"),
    [
        (4e9, "warning", "bfloat16 (4.4 GB) is too large"),
        (8e9, "ok", "bfloat16 (4.4 GB) fits, float32 (8.8 GB) is too large"),
        (8e9, "ok", "JanusFlow-1.3B: bfloat16 (4.5 GB) fits, float32 (9.0 GB) is too large"),
        (24e9, "ok", "Janus-Pro-7B: bfloat16 (15.4 GB) fits, float32 (30.9 GB) is too large"),
        (64e9, "ok", "float32 (30.9 GB) fits"),
        (None, "ok", "unknown"),
    ],
)
def test_memory(total: float | None, status: str, words: str) -> None:
    finding = doctor.check_memory("memory", None if total is None else int(total))
    assert finding.status == status
    assert words in finding.text


# The whole, on made-up machines


def test_healthy_machine() -> None:
    found = doctor.findings(made_up())
    assert {finding.status for finding in found} == {"ok"}
    assert "memory of NVIDIA H100" in by_name(found)


def test_machine_without_torch() -> None:
    found = by_name(doctor.findings(made_up(torch=ModuleNotFoundError("No module named 'torch'"))))
    assert found["torch"].status == "problem"
    assert "No module named 'torch'" in found["torch"].text
    assert "pip install" in found["torch"].text
    assert "triton" not in found
    assert found["memory"].status == "ok"


@pytest.mark.parametrize(
    ("fact", "names"),
    [
        ("nvidia", {"torch"}),
        ("translated", {"python"}),
        ("cache", {"cache", "disk"}),
        ("offline", {"cache"}),
        ("memory", {"memory"}),
        ("version", {"janus-torch", "import name"}),
        ("module", {"triton", "torchvision"}),
    ],
)
def test_a_check_that_raises_is_a_problem(fact: str, names: set[str]) -> None:
    found = doctor.findings(made_up(**{fact: OSError("out of order\nsecond line")}))
    bad = {finding.name: finding.text for finding in found if finding.status != "ok"}
    assert set(bad) == names
    assert set(bad.values()) == {"the check failed: OSError: out of order"}


def test_report_is_aligned_and_wrapped() -> None:
    found = [Finding("torch", "ok", "word " * 40), Finding("import name", "problem", "`pip uninstall janus`")]
    lines = doctor.report(found, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].index("word") == lines[1].index("word") == lines[-2].index("`pip")
    assert lines[-1] == "1 problem, 0 warnings"


# Facts read from the real machine


def test_clash_is_found_among_the_distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "janus-2.0.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: janus\nVersion: 2.0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor.check_clash(Machine().version("janus"))
    assert finding.status == "problem"
    assert "janus 2.0.0" in finding.text
    assert "pip uninstall janus" in finding.text
    assert doctor.check_clash(None).status == "ok"


def test_module_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('operator does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    machine = Machine()
    assert machine.module("broken_module") == ("of unknown version", "RuntimeError: operator does not exist")
    assert machine.module("no_such_module") == (None, None)
    (tmp_path / "sound_module.py").write_text("__version__ = '1.2'\n")
    assert machine.module("sound_module") == ("1.2", None)


def test_cache_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert Machine().cache.models == {}
    blobs = tmp_path / "hub" / "models--deepseek-ai--Janus-Pro-1B" / "blobs"
    snapshot = blobs.parent / "snapshots" / "0123"
    autoencoder = tmp_path / "hub" / "models--stabilityai--sdxl-vae" / "blobs"
    for folder in (blobs, snapshot, autoencoder, tmp_path / "hub" / "models--org--other"):
        folder.mkdir(parents=True)
    (autoencoder / "def").write_bytes(bytes(10))
    (blobs / "abc").write_bytes(bytes(1000))
    (snapshot / "model.safetensors").symlink_to(blobs / "abc")
    cache = Machine().cache
    assert cache.models == {"deepseek-ai/Janus-Pro-1B": 1000, "stabilityai/sdxl-vae": 10}
    assert cache.writable
    assert cache.free > 0
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert not Machine().cache.writable


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 2023\nGCC",
            "driver 535.54.03",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release", "driver 580.65.06"),
        ("something else", None),
    ],
)
def test_driver_version(text: str, driver: str | None) -> None:
    assert machine.driver_of(text) == driver


def test_nvidia_smi_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    answers = [
        SimpleNamespace(returncode=9, stdout="failed"),
        SimpleNamespace(returncode=0, stdout="GPU 0: T4\n"),
    ]
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: answers.pop(0))
    assert Machine().nvidia is None
    assert Machine().nvidia == "GPU 0: T4"


def test_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "doctor.json"
    status = doctor.run(path)
    written = json.loads(path.read_text())
    assert status == (1 if written["problem"] else 0)
    assert len(written["findings"]) == written["ok"] + written["warning"] + written["problem"]
    printed = capsys.readouterr().out
    assert all(finding["name"] in printed for finding in written["findings"])
    assert "the check failed" not in printed


def test_works_without_torch() -> None:
    command = (
        "import importlib.util, sys\n"
        "sys.modules['torch'] = None\n"  # every import of it fails
        "spec = importlib.util.spec_from_file_location('doctor', sys.argv[1])\n"
        "sys.modules['doctor'] = doctor = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(doctor)\n"
        "sys.exit(doctor.run())\n"
    )
    arguments = [sys.executable, "-c", command, str(doctor.__file__)]
    completed = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert completed.returncode == 1, completed.stderr
    assert re.search(r"problem\s+torch\s+cannot be imported", completed.stdout)
    assert "Traceback" not in completed.stderr


@pytest.mark.parametrize("model", doctor.MODELS, ids=lambda model: model.name)
def test_the_models_sizes_are_those_that_info_counts(model: doctor.ModelSize) -> None:
    from janus.apps.info import parameters_by_part, vae_parameters
    from janus.config import JanusFlowConfig
    from janus.models.vae import SDXL

    autoencoder = vae_parameters(SDXL) if isinstance(model.config, JanusFlowConfig) else 0
    assert model.parameters == parameters_by_part(model.config)["total"] + autoencoder
