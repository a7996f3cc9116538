"""The commands that use a model or look at one: ask, chat, draw, reconstruct, info, convert."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from janus.apps.command import (
    Command,
    add_checkpoint_options,
    add_model_options,
    add_parallel_option,
    add_quantize_option,
    add_vae_option,
    load_pipeline,
    shows,
)
from janus.files import is_file, is_unfinished, require_folder, require_place


def _add_answer_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-i", "--image", action="append", default=[], help="a picture; may be given several times"
    )
    command.add_argument("--system", help='system prompt (the family\'s own; "" for none)')
    command.add_argument("--max-new-tokens", type=int, default=512, help="(%(default)s)")
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    command.add_argument("--top-p", type=float, default=1.0, help="(%(default)s)")
    command.add_argument("--seed", type=int, help="for temperatures above 0")


def _answer_choices(options: argparse.Namespace) -> dict[str, Any]:
    names = ("system", "max_new_tokens", "temperature", "top_p", "seed")
    return {name: getattr(options, name) for name in names}


def _print_stream(pieces: Iterable[str]) -> str:
    """Show an answer as it comes; -> all of it. The space that most answers begin with is not shown."""
    answer = ""
    for piece in pieces:
        shown = piece if answer.strip() else (answer + piece).lstrip()
        answer += piece
        print(shown, end="", flush=True)
    print()
    return answer


def _ask_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("picture", nargs="*", help="pictures, as after -i, before the question")
    command.add_argument("question")
    _add_answer_options(command)
    add_model_options(command)
    add_parallel_option(command)


def _ask(options: argparse.Namespace) -> int:
    pictures = [*options.picture, *options.image]
    _check_order(options.picture, options.question)
    pipe = load_pipeline(options, *pictures)
    _print_stream(pipe.ask(options.question, pictures, stream=True, **_answer_choices(options)))
    return 0


def _check_order(pictures: Sequence[str], question: str) -> None:
    """ValueError where a picture stands in the question's place."""
    if not is_file(question):
        return
    if not pictures:
        raise ValueError(f"{question} is a picture, and nothing is asked: put a question after it")
    if not any(map(is_file, pictures)):
        raise ValueError(f"{question} comes after the question: put pictures before it")


def _chat_options(command: argparse.ArgumentParser) -> None:
    _add_answer_options(command)
    add_model_options(command)
    add_parallel_option(command)


def _read_line() -> str:
    """What the user says next; empty at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _chat(options: argparse.Namespace) -> int:
    from janus.inference.ranks import from_all_ranks

    pipe = load_pipeline(options, *options.image)
    messages: list[dict[str, Any]] = []
    pictures = [{"type": "image", "image": image} for image in options.image]
    while True:
        line = from_all_ranks(pipe.model, _read_line() if shows(options) else "")[0]
        if not line:
            return 0
        content = [*pictures, {"type": "text", "text": line}]
        pictures = []
        messages.append({"role": "user", "content": content})
        answer = _print_stream(pipe.chat(messages, stream=True, **_answer_choices(options)))
        messages.append({"role": "assistant", "content": answer})


def _draw_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompt", nargs="+", help="one or several prompts, each in quotes")
    command.add_argument(
        "-o", "--output", type=Path, default=Path("picture.png"), help="several get -1, -2, … (%(default)s)"
    )
    command.add_argument("-n", type=int, default=1, help="pictures of each prompt (%(default)s)")
    command.add_argument(
        "--seed", type=int, help="the same seed draws the same pictures; without it a new one is named"
    )
    command.add_argument(
        "--guidance",
        type=float,
        help="strength of the prompt; 1 is none (the checkpoint's own, else 5, or 2 for JanusFlow)",
    )
    command.add_argument(
        "--batch-size", type=int, help="pictures drawn at once (what memory allows, at most 16)"
    )
    codes = command.add_argument_group("Janus and Janus-Pro")
    codes.add_argument("--temperature", type=float, help="0 is greedy (the checkpoint's own, else 1)")
    codes.add_argument("--top-k", type=int, help="sample from the k likeliest codes only")
    codes.add_argument("--top-p", type=float, help="sample from the likeliest codes of this weight only")
    codes.add_argument(
        "--speculate",
        type=int,
        metavar="CODES",
        help="codes read at once, all but one of them guessed",
    )
    codes.add_argument("--prefix", help="a picture of the model's own size to continue; with --rows")
    codes.add_argument("--rows", type=int, help="rows of codes to keep of --prefix")
    flow = command.add_argument_group("JanusFlow")
    flow.add_argument("--steps", type=int, help="from noise to the picture (the checkpoint's own, else 30)")
    flow.add_argument(
        "--size",
        type=_size,
        metavar="SIDE|HEIGHTxWIDTH",
        help="pixels of each side, or of the two (the size that it sees)",
    )
    flow.add_argument(
        "--method",
        help="euler, or of second order midpoint and heun, of which a step takes twice as long (euler)",
    )
    add_vae_option(command)
    add_model_options(command)
    add_parallel_option(command)


def _size(text: str) -> int | tuple[int, int]:
    """A side in pixels, or HEIGHTxWIDTH."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give a side in pixels, or HEIGHTxWIDTH")
    height, width = found.groups()
    return int(height) if width is None else (int(height), int(width))


def _draw(options: argparse.Namespace) -> int:
    import torch
    from PIL.PngImagePlugin import PngInfo

    from janus.inference.ranks import from_all_ranks

    files = _numbered(options.output, len(options.prompt) * options.n)
    for file in files:
        require_place(file, "-o", ".png")
    pipe = load_pipeline(options, *([options.prefix] if options.prefix else []))
    seed = from_all_ranks(pipe.model, int(torch.seed() % 2**32))[0] if options.seed is None else options.seed
    names = ("n", "guidance", "batch_size", "temperature", "top_k", "top_p", "speculate", "prefix", "rows")
    chosen = {name: getattr(options, name) for name in (*names, "steps", "method", "size")}
    pictures = pipe.draw(options.prompt, seed=seed, progress=None if shows(options) else False, **chosen)
    if not shows(options):
        return 0
    for index, (file, picture) in enumerate(zip(files, pictures, strict=True)):
        note = PngInfo()
        note.add_itxt("prompt", options.prompt[index // options.n])
        note.add_text("seed", f"{seed}, picture {index % options.n}")
        picture.save(file, pnginfo=note)
        print(f"{file} (seed {seed}, picture {index % options.n})")
    return 0


def _numbered(file: Path, count: int) -> list[Path]:
    """What several pictures are written to: -1, -2, …; one has the name itself."""
    if count <= 1:
        return [file]
    return [file.with_stem(f"{file.stem}-{number}") for number in range(1, count + 1)]


def _reconstruct_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("image")
    command.add_argument(
        "-o", "--output", type=Path, default=Path("reconstruction.png"), help="(%(default)s)"
    )
    add_vae_option(command)
    add_model_options(command, speaks=False)


def _reconstruct(options: argparse.Namespace) -> int:
    require_place(options.output, "-o", ".png")
    picture = load_pipeline(options, options.image).reconstruct(options.image)
    picture.save(options.output)
    print(options.output)
    return 0


def _info_options(command: argparse.ArgumentParser) -> None:
    add_checkpoint_options(command)
    add_vae_option(command)
    command.add_argument(
        "--pictures", type=int, default=1, help="pictures drawn at once, for the estimate (%(default)s)"
    )
    command.add_argument("--prompt-tokens", type=int, default=64, help="for the estimate (%(default)s)")
    command.add_argument("--answer-tokens", type=int, default=512, help="for the estimate (%(default)s)")
    command.add_argument("--check", action="store_true", help="read every weight and report NaN and infinity")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def _info(options: argparse.Namespace) -> int:
    from janus.apps import info
    from janus.weights.hub import SHAPES

    return info.run(
        options.model or SHAPES,
        vae=options.vae,
        revision=options.revision,
        pictures=options.pictures,
        prompt=options.prompt_tokens,
        answer=options.answer_tokens,
        check=options.check,
        json_path=options.json,
    )


def _convert_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help="hub id or folder")
    command.add_argument("destination", type=Path, help="a folder that is new or empty")
    command.add_argument("--layout", choices=("deepseek", "transformers"), help="needed unless --quantize is")
    add_quantize_option(command)
    command.add_argument("--dtype", help="bfloat16, float16 or float32 (as stored)")
    command.add_argument("--max-shard-size", help="split the weights into files of at most so much, like 5GB")


def _convert(options: argparse.Namespace) -> int:
    import torch

    from janus.devices import resolve_dtype
    from janus.weights.load import inspect, load
    from janus.weights.save import parse_size, require_savable

    destination = options.destination
    if destination.exists() and not (destination.is_dir() and all(map(is_unfinished, destination.iterdir()))):
        raise ValueError(f"{destination} is not empty: name a folder that is new or empty")
    if options.layout is None and options.quantize is None:
        raise ValueError(
            "name what to convert to: --layout deepseek or transformers, or --quantize int8 or int4"
        )
    if options.layout == "transformers" and options.quantize is not None:
        raise ValueError("transformers cannot read weights that are quantized here: leave --layout away")
    resolve_dtype(options.dtype, torch.device("cpu"))  # what is wrong raises before anything is fetched
    if options.max_shard_size is not None:
        parse_size(options.max_shard_size)
    layout: Any = options.layout or "deepseek"
    checkpoint = inspect(options.source)
    require_savable(checkpoint.model, layout, options.max_shard_size)  # before any weight is read
    require_folder(destination, "name another destination")
    for left in destination.iterdir():  # by one that was killed
        left.unlink()
    # As stored, not as this machine computes best: converting must not change a number.
    dtype = options.dtype or checkpoint.widest
    model = load(checkpoint.folder, device="cpu", dtype=dtype, quantize=options.quantize)
    model.save_pretrained(destination, layout=layout, max_shard_size=options.max_shard_size)
    print(destination)
    return 0


COMMANDS = {
    "ask": Command(
        _ask,
        _ask_options,
        "Answer one question about no, one or many pictures.",
        'janus ask cat.png "What is in the picture?" -m deepseek-ai/Janus-Pro-1B',
    ),
    "chat": Command(
        _chat,
        _chat_options,
        "Talk, a line at a time; an empty line or the end of the input ends it.",
        "janus chat --image cat.png -m deepseek-ai/Janus-Pro-1B",
    ),
    "draw": Command(
        _draw,
        _draw_options,
        "Draw pictures of a prompt and write them as PNG files.",
        'janus draw "a red circle left of a blue square" -n 4 --seed 7 -m deepseek-ai/Janus-Pro-1B',
    ),
    "reconstruct": Command(
        _reconstruct,
        _reconstruct_options,
        "Send a picture through the picture tokenizer, or a JanusFlow's autoencoder, and back.",
        "janus reconstruct cat.png -o again.png -m deepseek-ai/Janus-Pro-1B",
    ),
    "info": Command(
        _info,
        _info_options,
        "Show a checkpoint's config, parameters by part and memory, without loading it.",
        "janus info -m deepseek-ai/Janus-Pro-7B --pictures 4",
    ),
    "convert": Command(
        _convert,
        _convert_options,
        "Rewrite a checkpoint in the released layout or in that of transformers.",
        "janus convert deepseek-ai/Janus-Pro-1B ./janus-pro-1b --layout transformers",
    ),
}
