"""One rank of a tensor-parallel run, for test_tensor_parallel.py: torchrun starts two of it on the CPU.

`rank.py FOLDER CHECKPOINT...` writes what each rank of each checkpoint computes and holds to
FOLDER/<rank>.pt, and answers the lines of its standard input with the command line's chat.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import janus
from janus.apps import cli
from janus.inference.draw import draw_codes
from janus.inference.draw_batch import Picture
from janus.inference.sampling import Sampling
from janus.inference.tensor_parallel import tensor_parallel
from janus.inference.text import generate
from janus.models.janus import Janus
from janus.weights.load import load

PHOTOGRAPH = Path(__file__).resolve().parents[1] / "data" / "photographs" / "chelsea.png"
NO_END = -1
CONVERSATIONS = [[{"role": "user", "content": text}] for text in ("Hi", "What is red, and what is blue?")]


@torch.no_grad()
def outputs(pipe: janus.Pipeline) -> dict[str, Any]:
    """What a whole model and each rank of a split one must compute alike."""
    model, pad_id = pipe.model, pipe.processor.tokenizer.pad_id
    messages = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": PHOTOGRAPH}, {"type": "text", "text": "What?"}],
            }
        ],
        [{"role": "user", "content": "Hello"}],  # padded
    ]
    batch = pipe.processor(messages)
    embeds = model.embed(batch.input_ids, batch.pixels, batch.image_mask)
    hidden = model.hidden_states(embeds, batch.attention_mask)
    greedy, sampled = Sampling(temperature=0), Sampling(temperature=1.0, top_p=0.9)
    options = {"end_id": NO_END, "max_new_tokens": 12}
    answers = generate(model, embeds, batch.attention_mask, sampling=greedy, **options)
    tried = generate(model, embeds, batch.attention_mask, sampling=sampled, seeds=[3, 4], **options)
    pictures = [
        Picture(prompt=tuple(pipe.processor.draw_prompt(prompt)), seed=7, number=number)
        for number, prompt in enumerate(("a red circle", "a cat on a mat"))
    ]
    return {
        "hidden": hidden,
        "text logits": model.text_logits(hidden),
        "image logits": model.image_logits(hidden),
        "greedy tokens": torch.stack([step.tokens for step in answers]),
        "sampled tokens": torch.stack([step.tokens for step in tried]),
        "greedy codes": torch.cat(list(draw_codes(model, pictures, pad_id=pad_id, sampling=greedy))),
        "sampled codes": torch.cat(list(draw_codes(model, pictures, pad_id=pad_id))),
        "one word": model.text_logits(hidden[0, -1]),
    }


@torch.no_grad()
def logits(pipe: janus.Pipeline) -> torch.Tensor:
    """(1, 24, codes) in float32, of whatever precision the model computes in."""
    ids = torch.arange(24)[None]
    return pipe.model.image_logits(pipe.model.hidden_states(pipe.model.embed(ids))).float()


def facts(path: str) -> dict[str, Any]:
    """What one rank of a checkpoint computes and holds."""
    pipe = janus.load(path, device="cpu", dtype="float32", tensor_parallel=True)
    split = tensor_parallel(load(path, device="cpu", dtype="float32"))
    torch.manual_seed(distributed.get_rank())
    found = {
        "outputs": outputs(pipe),
        "unseeded": pipe.ask("Hi", temperature=1.0, max_new_tokens=8),
        "answers": pipe.chat(CONVERSATIONS, max_new_tokens=6),
        "bfloat16": logits(janus.load(path, device="cpu", dtype="bfloat16", tensor_parallel=True)),
        "state": pipe.model.state_dict(),
        "split later": split.state_dict(),
        "storage": [
            {name: tensor.untyped_storage().nbytes() for name, tensor in each.named_parameters()}
            for each in (pipe.model, split)
        ],
        "as stored": load(path, device="cpu", dtype="bfloat16", mesh=pipe.model.language.mesh).state_dict(),
        "kv_heads": (pipe.config.language.kv_heads, pipe.model.language.config.kv_heads),
    }
    found["refused"] = refusals(pipe.model)
    return found


def refusals(model: Janus) -> list[str]:
    """What is said to those who ask of a split model what it cannot do."""
    messages = []
    for attempt in (
        lambda: model.hidden_states(model.embed(torch.tensor([[1, 2]]))),
        lambda: tensor_parallel(model),
        lambda: model.save_pretrained("never written"),
    ):
        try:
            attempt()
        except (RuntimeError, ValueError) as error:
            messages.append(str(error))
    return messages


def main(folder: str, *checkpoints: str) -> None:
    torch.set_num_threads(1)
    found = {path: facts(path) for path in checkpoints}
    torch.save(found, Path(folder) / f"{distributed.get_rank()}.pt")
    options = ["-m", checkpoints[0], "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "5"]
    assert cli.main(["chat", "--tensor-parallel", *options]) == 0
    assert not distributed.is_initialized()


if __name__ == "__main__":
    main(*sys.argv[1:])
