"""What PyTorch computes well on this CPU. Where it has no kernel for a dtype, it goes number by number: a
convolution in bfloat16 takes some 250 times as long as in float32 on a CPU that has AVX2 alone.
"""

import platform

import torch

HALVES = (torch.bfloat16, torch.float16)


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN has matrix products and convolutions of this dtype here."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def has_fbgemm() -> bool:
    """Whether FBGEMM is there, whose products take weights in float16 and all else in float32."""
    return is_x86() and "fbgemm" in torch.backends.quantized.supported_engines


def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether 16 bits are better computed in float32 on that device."""
    return device.type == "cpu" and dtype in HALVES and not has_onednn(dtype)
