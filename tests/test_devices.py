"""Which device and precision a model gets, on machines that are and are not at hand."""

from pathlib import Path

import pytest
import torch

from janus import devices
from janus.devices import computed_in, computes_bfloat16, free_memory, resolve_device, resolve_dtype

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
MPS = torch.device("mps")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with neither CUDA nor MPS; a test gives it what it needs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def test_without_a_name_cuda_then_mps_then_cpu(bare: pytest.MonkeyPatch) -> None:
    assert resolve_device() == CPU
    bare.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device() == MPS
    bare.setattr(torch.cuda, "is_available", lambda: True)
    bare.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device() == torch.device("cuda", 1)


def test_named_device_is_kept(bare: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device(CPU) == CPU
    bare.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda", ["0 CUDA devices", "janus doctor"]),
        (CUDA, ["0 CUDA devices", "janus doctor"]),
        ("cuda:3", ["cuda:3", "0 CUDA devices"]),
        ("mps", ["mps", "not available"]),
        ("gpu", ["gpu", "'cuda:1'"]),
        ("", ["unknown"]),
        (3.5, ["3.5", "unknown"]),
        ("xpu", ["xpu", "not available"]),
        ("meta", ["holds no numbers"]),
    ],
    ids=["cuda", "cuda-object", "cuda-index", "mps", "no-such-name", "empty", "number", "xpu", "meta"],
)
def test_absent_device_raises_with_a_remedy(
    device: str | torch.device, words: list[str], bare: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="device") as raised:
        resolve_device(device)
    for word in words:
        assert word in str(raised.value)


def test_cuda_index_beyond_those_present(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="sees 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("stored", "device", "computes", "expected"),
    [
        (torch.bfloat16, CPU, True, torch.bfloat16),
        (torch.bfloat16, CPU, False, torch.float32),
        (torch.bfloat16, CUDA, True, torch.bfloat16),
        (torch.bfloat16, CUDA, False, torch.float32),
        (torch.float16, CPU, True, torch.float32),
        (torch.float16, CUDA, False, torch.float16),
        (torch.float16, MPS, False, torch.float16),
        (torch.float32, CUDA, True, torch.float32),
        (torch.float64, CPU, True, torch.float32),
    ],
)
def test_dtype_without_a_name(
    stored: torch.dtype,
    device: torch.device,
    computes: bool,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "computes_bfloat16", lambda _: computes)
    assert resolve_dtype(None, device, stored) == expected


@pytest.mark.parametrize(
    ("machine", "device", "expected"),
    [("x86_64", CPU, torch.bfloat16), ("aarch64", CPU, torch.float32), ("x86_64", MPS, torch.float32)],
)
def test_beside_quantized_weights_an_x86_cpu_computes_bfloat16(
    machine: str, device: torch.device, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "computes_bfloat16", lambda _: False)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert resolve_dtype(None, device, torch.bfloat16, quantized=True) == expected
    assert resolve_dtype(None, device, torch.float32, quantized=True) == expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", torch.bfloat16), ("float16", torch.float16), (torch.float32, torch.float32)],
)
def test_named_dtype_wins_over_the_stored_one(
    dtype: str | torch.dtype, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "computes_bfloat16", lambda _: False)
    assert resolve_dtype(dtype, CPU, torch.float64) == expected


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "nn", "half precision", "", torch.int64])
def test_dtype_that_no_model_computes_in_raises(dtype: str | torch.dtype) -> None:
    with pytest.raises(ValueError, match="not supported: name bfloat16, float16, float32 or float64"):
        resolve_dtype(dtype, CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_computes_bfloat16_from_ampere_on(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert computes_bfloat16(CUDA) is expected


@pytest.mark.parametrize("present", ["_is_amx_tile_supported", "_is_avx512_bf16_supported", None])
def test_cpu_computes_bfloat16_with_either_instruction_set(
    present: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == present, raising=False)
    assert computes_bfloat16(CPU) is (present is not None)


def test_old_torch_without_the_questions_does_not_compute_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert computes_bfloat16(CPU) is False


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files in which this system tells of its memory: 8 GiB are free, and there is no container."""
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 8388608 kB\n")
    monkeypatch.setattr(devices, "MEMORY", tmp_path / "meminfo")
    places = tuple((tmp_path / limit.name, *names) for limit, *names in devices.CONTAINERS)
    monkeypatch.setattr(devices, "CONTAINERS", places)
    return tmp_path


def test_free_memory_of_the_processor(system: Path) -> None:
    assert free_memory(CPU) == 8 << 30
    (system / "meminfo").write_text("MemTotal: 9999 kB\n")
    assert free_memory(CPU) is None
    (system / "meminfo").unlink()
    assert free_memory(CPU) is None


@pytest.mark.parametrize("version", [2, 1])
def test_free_memory_of_a_container(version: int, system: Path) -> None:
    """What it keeps of files that were read, as of weights, gives way to what is wanted."""
    limit, used, cache = devices.CONTAINERS[2 - version]
    limit.write_text(f"{6 << 30}\n")
    limit.with_name(used).write_text(f"{5 << 30}\n")
    limit.with_name("memory.stat").write_text(f"anon 3\n{cache} {2 << 30}\nmore 1\n")
    assert free_memory(CPU) == 3 << 30
    limit.write_text(f"{1 << 30}\n")
    assert free_memory(CPU) == 0
    limit.write_text("max\n" if version == 2 else f"{1 << 62}\n")
    assert free_memory(CPU) == 8 << 30


def test_free_memory_of_a_device_that_does_not_tell() -> None:
    assert free_memory(torch.device("xpu")) is None


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_bfloat16_is_computed_in_where_a_gpu_has_it(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "computes_bfloat16", lambda _, has=has: has)
        assert computed_in(torch.device(device), torch.bfloat16) == expected
        assert computed_in(torch.device(device), torch.float16) == torch.float16
