"""Where the time of a decoding step goes: a full-size model with random weights, under torch's profiler.

    python benchmarks/profile_step.py [--model NAME] [--quantize int8|int4] [--codes 550] [--threads 2]

Draws a few codes of one guided picture after `--codes` of them are given, and prints the milliseconds of a
step by operation, those that take a hundredth of it or more. On a CPU in bfloat16, or a GPU if there is one.
"""

import argparse
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from janus.config import PRESETS
from janus.inference.draw import draw_steps
from janus.inference.draw_batch import Picture
from janus.inference.prepare import prepare
from janus.models.quantized import QUANTIZATIONS, quantize
from make_checkpoint import random_weights

PROMPT = tuple(range(1, 31))
STEPS = 5


def own_times(events: Iterable[Any], device: str) -> dict[str, float]:
    """Microseconds by operation on a CPU, by kernel on a GPU.

    There the operations of the host that launched the kernels are events as well, with the same time.
    """
    if device == "cpu":
        return {event.key: event.self_cpu_time_total for event in events}
    return {
        event.key: event.self_device_time_total for event in events if event.device_type == DeviceType.CUDA
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=PRESETS, default="Janus-Pro-1B")
    parser.add_argument("--quantize", choices=QUANTIZATIONS)
    parser.add_argument("--codes", type=int, default=550, help="codes that the picture has already")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_weights(PRESETS[options.model], 0, torch.bfloat16, device)
    if options.quantize:
        quantize(model, options.quantize)
    prepare(model)
    steps = draw_steps(model, [Picture(prompt=PROMPT, start=(0,) * options.codes)], pad_id=0)
    list(islice(steps, STEPS))  # what the first steps of a process do once
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    if on_gpu:
        torch.cuda.synchronize(device)  # the first steps are no part of it
    with profile(activities=kinds) as profiler:
        list(islice(steps, STEPS))
        if on_gpu:
            torch.cuda.synchronize(device)
    own = own_times(profiler.key_averages(), device.type)
    total = sum(own.values())
    print(f"{total / STEPS / 1000:8.2f} ms a step")
    small = 0.0
    for name, time in sorted(own.items(), key=lambda item: -item[1]):
        if time < total / 100:
            small += time
        else:
            print(f"{time / STEPS / 1000:8.2f} ms {time / total:6.1%}  {name}")
    print(f"{small / STEPS / 1000:8.2f} ms {small / total:6.1%}  all others")


if __name__ == "__main__":
    main()
