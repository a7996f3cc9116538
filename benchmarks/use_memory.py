"""The peak of host memory of a process that loads a checkpoint, answers a little and draws a little.

    python benchmarks/make_checkpoint.py Janus-Pro-7B FOLDER --quantize int4
    python benchmarks/use_memory.py FOLDER [--dtype bfloat16] [--quantize int4]

An answer of 4 tokens about a photograph, and 8 codes of a guided picture. The peak is the process's largest
resident set (VmHWM in /proc, so Linux only), with torch and all that it has imported.
"""

import argparse
import time
from itertools import islice
from pathlib import Path

import janus
from janus.inference.draw import draw_steps
from janus.inference.draw_batch import Picture
from machine import resident
from make_checkpoint import PHOTOGRAPH

TOKENS, CODES = 4, 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", help="as stored where the CPU computes it well")
    parser.add_argument("--quantize", help="int8 or int4: quantized while loading")
    options = parser.parse_args()
    start = time.perf_counter()
    pipe = janus.load(options.folder, device="cpu", dtype=options.dtype, quantize=options.quantize)
    loaded = time.perf_counter()
    peak = resident("VmHWM")
    print(f"loading    {loaded - start:.1f} s, {peak / 1e9:.3f} GB")
    pipe.ask("What is in the picture?", PHOTOGRAPH, max_new_tokens=TOKENS)
    answered = time.perf_counter()
    print(f"answering  {answered - loaded:.1f} s for {TOKENS} tokens, {resident('VmHWM') / 1e9:.3f} GB")
    picture = Picture(prompt=tuple(pipe.processor.draw_prompt("a red circle left of a blue square")))
    steps = draw_steps(pipe.model, [picture], pad_id=pipe.processor.tokenizer.pad_id)
    drawn = len(list(islice(steps, CODES)))
    seconds = time.perf_counter() - answered
    print(f"drawing    {seconds:.1f} s for {drawn} codes, {resident('VmHWM') / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
