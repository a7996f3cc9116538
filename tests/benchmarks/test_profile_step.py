"""Times by operation of a profile."""

from types import SimpleNamespace

from torch.autograd import DeviceType

from profile_step import own_times


def test_a_kernel_counts_once_though_its_launch_has_its_time_too() -> None:
    def event(key: str, kind: DeviceType, host: float, device: float) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, device_type=kind, self_cpu_time_total=host, self_device_time_total=device
        )

    events = [event("aten::mm", DeviceType.CPU, 3.0, 40.0), event("gemm", DeviceType.CUDA, 0.0, 40.0)]
    assert own_times(events, "cuda") == {"gemm": 40.0}
    assert own_times(events[:1], "cpu") == {"aten::mm": 3.0}
