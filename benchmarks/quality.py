"""What quantisation costs in quality: full precision against 8 and 4 bits, along full precision's own path.

    python benchmarks/quality.py FOLDER [--tokens 16] [--codes 64] [--cases 6] [--json FILE]

Full precision answers questions about photographs and draws pictures of prompts, both greedily, the pictures
with guidance 5. The quantised models then read the same tokens and codes, so that every position is compared
under the same past, and compute in the same dtype, that of full precision. Told are the Kullback-Leibler
divergence of their distributions from full precision's, in nats, mean and largest over the positions, and how
often the likeliest token or guided code is the same one. One model is in memory at a time. With random
weights the figures say that it runs, not how good it is.
"""

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import janus
from janus.config import JanusFlowConfig
from janus.inference.draw import draw_steps
from janus.inference.draw_batch import Picture, unconditional
from janus.inference.sampling import Sampling
from janus.inference.text import generate
from janus.models.quantized import QUANTIZATIONS
from janus.weights.config_files import read_config
from janus.weights.hub import find
from make_checkpoint import PHOTOGRAPH

OTHERS = ("astronaut", "coffee", "rocket", "retina", "hubble_deep_field")  # scikit-image's, where it is
QUESTIONS = (
    "What is in the picture?",
    "Describe the colours and the light.",
    "What is in the foreground, and what behind it?",
    "Write a caption of one sentence.",
    "How many living things can you see?",
    "What might have happened a moment before?",
)
PROMPTS = (
    "a red circle left of a blue square",
    "A close-up photograph of a tabby cat asleep on a windowsill, morning light",
    "An oil painting of a harbour at dusk, fishing boats, warm reflections",
    "A steaming bowl of ramen with a soft-boiled egg, seen from above",
    "A lighthouse on a cliff in a storm, long exposure, black and white",
    "A watercolour of an old bicycle leaning on a yellow wall",
)
GUIDANCE = 5.0
GREEDY = Sampling(temperature=0)


def photographs() -> list[Any]:
    """Real photographs: the repository's own, and scikit-image's."""
    try:
        from skimage import data
    except ImportError:
        return [str(PHOTOGRAPH)]
    return [str(PHOTOGRAPH), *(np.asarray(getattr(data, name)()) for name in OTHERS)]


@torch.no_grad()
def answer(pipe: janus.Pipeline, case: int, path: Tensor | None, tokens: int) -> tuple[Tensor, Tensor]:
    """The path, (T,) tokens, chosen greedily unless given, and the log-probabilities along it, (T, V)."""
    model, pictures = pipe.model, photographs()
    content = [
        {"type": "image", "image": pictures[case % len(pictures)]},
        {"type": "text", "text": QUESTIONS[case % len(QUESTIONS)]},
    ]
    batch = pipe.processor([{"role": "user", "content": content}]).to(model.device)
    asked = model.embed(batch.input_ids, batch.pixels, batch.image_mask)
    if path is None:
        end = pipe.processor.tokenizer.eos_id
        steps = generate(model, asked, None, end_id=end, max_new_tokens=tokens, sampling=GREEDY, seeds=[0])
        path = torch.cat([step.tokens.cpu() for step in steps])
    read = torch.cat((asked, model.embed(path[None, :-1].to(model.device))), dim=1)
    hidden = model.hidden_states(read)[0, asked.shape[1] - 1 :]
    return path, model.text_logits(hidden).float().log_softmax(-1).cpu()


@torch.no_grad()
def draw(pipe: janus.Pipeline, case: int, path: Tensor | None, codes: int) -> tuple[Tensor, Tensor]:
    """As `answer`, of a picture's first codes, with guidance."""
    model, pad = pipe.model, pipe.processor.tokenizer.pad_id
    prompt = tuple(pipe.processor.draw_prompt(PROMPTS[case % len(PROMPTS)]))
    if path is None:
        steps = draw_steps(model, [Picture(prompt=prompt)], pad_id=pad, guidance=GUIDANCE, sampling=GREEDY)
        path = torch.cat([step.codes.cpu() for step in islice(steps, codes)])
    rows = torch.tensor([prompt, unconditional(prompt, pad)], device=model.device)
    begun = model.embed_codes(path[None, :-1].to(model.device)).expand(2, -1, -1)
    hidden = model.hidden_states(torch.cat((model.embed(rows), begun), dim=1))[:, len(prompt) - 1 :]
    conditional, baseline = model.image_logits(hidden).float()
    return path, (baseline + GUIDANCE * (conditional - baseline)).log_softmax(-1).cpu()


def compare(exact: Tensor, other: Tensor) -> dict[str, float]:
    """Of log-probabilities (T, V) of all positions."""
    divergence = (exact.exp() * (exact - other)).nan_to_num(0).sum(-1)
    agreement = (exact.argmax(-1) == other.argmax(-1)).float().mean()
    return {
        "kl_mean": divergence.mean().item(),
        "kl_max": divergence.max().item(),
        "agreement": agreement.item(),
        "positions": len(exact),
    }


def require_full_precision(folder: Path) -> None:
    """ValueError for a JanusFlow, whose pictures have no codes, and for what is quantized already."""
    config, _ = read_config(find(folder, weights=False))
    if isinstance(config, JanusFlowConfig):
        raise ValueError(f"{folder} is a JanusFlow, which draws without codes: name a Janus or a Janus-Pro")
    if config.quantization is not None:
        raise ValueError(
            f"{folder} is quantized to {config.quantization}: name the checkpoint that it was made from"
        )


def measure(folder: Path, *, cases: int, tokens: int, codes: int, device: str | None) -> list[dict[str, Any]]:
    """A row per quantisation and head."""
    require_full_precision(folder)
    kinds = (("text", answer, tokens), ("image", draw, codes))
    paths: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    rows = []
    dtype: torch.dtype | None = None  # the full model's own; beside integers a CPU would choose another
    for quantization in (None, *QUANTIZATIONS):
        pipe = janus.load(folder, device=device, dtype=dtype, quantize=quantization)
        dtype = pipe.model.dtype
        for head, run, length in kinds:
            exact, other = [], []
            for case in range(cases):
                if quantization is None:
                    paths[head, case] = run(pipe, case, None, length)
                else:
                    path, before = paths[head, case]
                    exact.append(before)
                    other.append(run(pipe, case, path, length)[1])
            if quantization is not None:
                rows.append(
                    {
                        "quantization": quantization,
                        "dtype": str(dtype).removeprefix("torch."),
                        "head": head,
                        **compare(torch.cat(exact), torch.cat(other)),
                    }
                )
        del pipe
        gc.collect()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a checkpoint in full precision")
    parser.add_argument("--cases", type=int, default=6, help="questions, and prompts (%(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer (%(default)s)")
    parser.add_argument("--codes", type=int, default=64, help="of each picture (%(default)s)")
    parser.add_argument("--device", help="the best there is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    options = parser.parse_args(arguments)
    try:
        rows = measure(
            options.folder,
            cases=options.cases,
            tokens=options.tokens,
            codes=options.codes,
            device=options.device,
        )
    except (ValueError, OSError) as mistake:
        print(f"quality.py: {mistake}", file=sys.stderr)
        return 2
    print(f"All in {rows[0]['dtype']}:\n")
    print("| weights | head | KL, mean | KL, largest | likeliest the same | positions |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['quantization']} | {row['head']} | {row['kl_mean']:.4f} | {row['kl_max']:.4f} "
            f"| {row['agreement']:.1%} | {row['positions']} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
