"""This library against transformers' Janus on one full-size checkpoint, in float32: how far they are apart.

    python benchmarks/make_checkpoint.py Janus-Pro-1B ours
    janus convert ours theirs --layout transformers
    python benchmarks/full_size_parity.py ours theirs

One photograph is seen, one prompt of words and picture is read, one picture is drawn greedily with guidance 5
and decoded. Differences are relative to the largest magnitude; the codes are counted. About 20 GB of memory,
one model at a time.
"""

import argparse
import gc
from pathlib import Path

import torch
from torch import Tensor

import janus
from janus.inference.draw import draw_codes
from janus.inference.draw_batch import Picture
from janus.inference.sampling import Sampling
from make_checkpoint import PHOTOGRAPH

PROMPT = "a red circle left of a blue square"


@torch.no_grad()
def ours(folder: Path) -> dict[str, Tensor]:
    pipe = janus.load(folder, device="cpu", dtype="float32")
    model, processor = pipe.model, pipe.processor
    content = [
        {"type": "image", "image": str(PHOTOGRAPH)},
        {"type": "text", "text": "What is in the picture?"},
    ]
    batch = processor([{"role": "user", "content": content}])
    hidden = model.hidden_states(model.embed(batch.input_ids, batch.pixels, batch.image_mask))
    prompt = tuple(processor.draw_prompt(PROMPT))
    codes = next(
        draw_codes(
            model,
            [Picture(prompt=prompt)],
            pad_id=processor.tokenizer.pad_id,
            sampling=Sampling(temperature=0),
            on_codes=lambda so_far: print(f"\r{so_far.shape[1]} codes", end="", flush=True),
        )
    )
    print()
    return {
        "input_ids": batch.input_ids,
        "pixels": batch.pixels,
        "prompt": torch.tensor([prompt]),
        "vision features": model.encode_images(batch.pixels),
        "text logits": model.text_logits(hidden),
        "picture codes": codes.flatten(1),
        "decoded picture": model.vq.decode(codes),
    }


@torch.no_grad()
def theirs(folder: Path, given: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers import JanusForConditionalGeneration

    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.config.image_token_id = int(given["input_ids"].mode().values)
    logits = model(input_ids=given["input_ids"], pixel_values=given["pixels"]).logits
    codes = model.generate(
        given["prompt"],
        attention_mask=torch.ones_like(given["prompt"]),
        generation_mode="image",
        do_sample=False,
        guidance_scale=5,
    )
    return {
        "vision features": model.model.get_image_features(given["pixels"], return_dict=True).pooler_output,
        "text logits": logits,
        "picture codes": codes,
        "decoded picture": model.model.vqmodel.decode(given["picture codes"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ours", type=Path, help="the checkpoint in the released layout")
    parser.add_argument("theirs", type=Path, help="the same in the layout of transformers")
    options = parser.parse_args()
    mine = ours(options.ours)
    gc.collect()
    for name, their in theirs(options.theirs, mine).items():
        if name == "picture codes":
            same = int((mine[name] == their).sum())
            print(f"{name:<16} {same} of {their.numel()} equal; {len(their.unique())} codes occur")
        else:
            print(f"{name:<16} {((mine[name] - their).abs().max() / their.abs().max()).item():.1e}")


if __name__ == "__main__":
    main()
