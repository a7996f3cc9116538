"""The command line: `janus COMMAND`.

Heavy imports wait until a command runs, so that help and doctor always work.
"""

import argparse
import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DESCRIPTION = "Ask about pictures, draw them, and train: Janus, Janus-Pro and their like."


@dataclass(frozen=True)
class Command:
    """One word of the command line: what it runs, its options, and what its help says and shows."""

    run: Callable[[argparse.Namespace], int]
    options: Callable[[argparse.ArgumentParser], None]
    summary: str
    example: str


def _add_checkpoint_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("-m", "--model", help="hub id or folder of a checkpoint")
    command.add_argument("--revision", help="branch, tag or commit on the hub")


def _add_quantize_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--quantize", choices=("int8", "int4"), help="make the language model's weights integers"
    )


def _add_model_options(command: argparse.ArgumentParser) -> None:
    _add_checkpoint_options(command)
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (the best there is)")
    command.add_argument(
        "--dtype", help="bfloat16, float16 or float32 (the weights' own, where computed well)"
    )
    _add_quantize_option(command)
    command.add_argument(
        "--compile", action="store_true", help="give the language model's steps to torch.compile"
    )
    command.add_argument(
        "--corrected-pictures",
        action="store_true",
        help="turn pictures upright, scale 16 bits, lay transparency on the background: not as the original",
    )


def _add_parallel_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tensor-parallel",
        action="store_true",
        help="split the language model over processes: torchrun --nproc-per-node 2 -m janus ...",
    )


def _is_parallel(options: argparse.Namespace) -> bool:
    """Whether this is one of several processes that do the command's work together."""
    if getattr(options, "trains", False):
        return int(os.environ.get("WORLD_SIZE", "1")) > 1
    return getattr(options, "tensor_parallel", False)


def _shows(options: argparse.Namespace) -> bool:
    """Whether this process shows and writes what comes out: of several that compute the same, the first."""
    return not _is_parallel(options) or os.environ.get("RANK", "0") == "0"


def _add_answer_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-i", "--image", action="append", default=[], help="a picture; may be given several times"
    )
    command.add_argument("--system", help='system prompt (the family\'s own; "" for none)')
    command.add_argument("--max-new-tokens", type=int, default=512, help="(%(default)s)")
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    command.add_argument("--top-p", type=float, default=1.0, help="(%(default)s)")
    command.add_argument("--seed", type=int, help="for temperatures above 0")


def _load(options: argparse.Namespace, *pictures: str | Path) -> Any:
    """The pipeline; a picture that is not there is told before the model is loaded."""
    import janus

    for picture in pictures:
        if not str(picture).startswith("data:") and not Path(picture).is_file():
            raise FileNotFoundError(f"{picture} is not a file: give the path of a picture")
    return janus.load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        revision=options.revision,
        corrected_pictures=options.corrected_pictures,
        compile=options.compile,
        tensor_parallel=_is_parallel(options),
    )


def _prepare_output(output: Path) -> None:
    """Make the folder that a picture will be written to; what cannot be written is told before the work."""
    if output.suffix.lower() != ".png" or output.is_dir():
        raise ValueError(f"{output} must be a file that ends in .png")
    output.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise PermissionError(f"{output} cannot be written: choose another place with -o")


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
    command.add_argument("question")
    _add_answer_options(command)
    _add_model_options(command)
    _add_parallel_option(command)


def _ask(options: argparse.Namespace) -> int:
    pipe = _load(options, *options.image)
    _print_stream(pipe.ask(options.question, options.image, stream=True, **_answer_choices(options)))
    return 0


def _chat_options(command: argparse.ArgumentParser) -> None:
    _add_answer_options(command)
    _add_model_options(command)
    _add_parallel_option(command)


def _read_line() -> str:
    """What the user says next; empty at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _chat(options: argparse.Namespace) -> int:
    from janus.inference.ranks import from_all_ranks

    pipe = _load(options, *options.image)
    messages: list[dict[str, Any]] = []
    pictures = [{"type": "image", "image": image} for image in options.image]
    while True:
        line = from_all_ranks(pipe.model, _read_line() if _shows(options) else "")[0]
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
        "--guidance", type=float, help="strength of the prompt; 1 is none (the checkpoint's own, else 5)"
    )
    command.add_argument("--temperature", type=float, help="0 is greedy (the checkpoint's own, else 1)")
    command.add_argument("--top-k", type=int, help="sample from the k likeliest codes only")
    command.add_argument("--top-p", type=float, help="sample from the likeliest codes of this weight only")
    command.add_argument(
        "--batch-size", type=int, help="pictures drawn at once (what memory allows, at most 16)"
    )
    command.add_argument(
        "--speculate", type=int, metavar="CODES", help="codes guessed at once: the same picture, maybe sooner"
    )
    command.add_argument(
        "--prefix", type=Path, help="a picture of the model's own size to continue; with --rows"
    )
    command.add_argument("--rows", type=int, help="rows of codes to keep of --prefix")
    _add_model_options(command)
    _add_parallel_option(command)


def _draw(options: argparse.Namespace) -> int:
    import torch
    from PIL.PngImagePlugin import PngInfo

    from janus.inference.ranks import from_all_ranks

    _prepare_output(options.output)
    pipe = _load(options, *([options.prefix] if options.prefix else []))
    seed = from_all_ranks(pipe.model, int(torch.seed() % 2**32))[0] if options.seed is None else options.seed
    names = ("n", "guidance", "temperature", "top_k", "top_p", "batch_size", "speculate", "prefix", "rows")
    chosen = {name: getattr(options, name) for name in names}
    pictures = pipe.draw(options.prompt, seed=seed, progress=None if _shows(options) else False, **chosen)
    if not _shows(options):
        return 0
    for index, picture in enumerate(pictures):
        file = options.output
        if len(pictures) > 1:
            file = file.with_stem(f"{file.stem}-{index + 1}")
        note = PngInfo()
        note.add_itxt("prompt", options.prompt[index // options.n])
        note.add_text("seed", f"{seed}, picture {index % options.n}")
        picture.save(file, pnginfo=note)
        print(f"{file} (seed {seed}, picture {index % options.n})")
    return 0


def _reconstruct_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", type=Path)
    command.add_argument(
        "-o", "--output", type=Path, default=Path("reconstruction.png"), help="(%(default)s)"
    )
    _add_model_options(command)


def _reconstruct(options: argparse.Namespace) -> int:
    _prepare_output(options.output)
    picture = _load(options, options.image).reconstruct(options.image)
    picture.save(options.output)
    print(options.output)
    return 0


def _info_options(command: argparse.ArgumentParser) -> None:
    _add_checkpoint_options(command)
    command.add_argument(
        "--pictures", type=int, default=1, help="pictures drawn at once, for the estimate (%(default)s)"
    )
    command.add_argument("--prompt-tokens", type=int, default=64, help="for the estimate (%(default)s)")
    command.add_argument("--answer-tokens", type=int, default=512, help="for the estimate (%(default)s)")
    command.add_argument("--check", action="store_true", help="read every weight and report NaN and infinity")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def _info(options: argparse.Namespace) -> int:
    from janus.apps import info

    if options.model is None:
        raise ValueError("name a checkpoint with -m: a hub id or a folder")
    return info.run(
        options.model,
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
    _add_quantize_option(command)
    command.add_argument("--dtype", help="bfloat16, float16 or float32 (as stored)")
    command.add_argument("--max-shard-size", help="split the weights into files of at most so much, like 5GB")


def _convert(options: argparse.Namespace) -> int:
    from janus.weights.load import inspect, load

    destination = options.destination
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} is not empty: name a folder that is new or empty")
    if options.layout is None and options.quantize is None:
        raise ValueError(
            "name what to convert to: --layout deepseek or transformers, or --quantize int8 or int4"
        )
    if options.layout == "transformers" and options.quantize is not None:
        raise ValueError("transformers cannot read weights that are quantised here: leave --layout away")
    checkpoint = inspect(options.source)
    # As stored, not as this machine computes best: converting must not change a number.
    dtype = options.dtype or checkpoint.dtype
    model = load(checkpoint.folder, device="cpu", dtype=dtype, quantize=options.quantize)
    layout: Any = options.layout or "deepseek"
    model.save_pretrained(destination, layout=layout, max_shard_size=options.max_shard_size)
    print(destination)
    return 0


def _train_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="a .toml or .yaml file, or the name of a recipe that is shipped")
    command.add_argument(
        "changes", nargs="*", metavar="key=value", help="like optimizer.lr=1e-4 or steps=100"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the run goes, or goes on (runs/ and the recipe's name)",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="tell parameters and memory, try one batch, train nothing"
    )
    command.add_argument("--device", help="cpu, cuda (the best there is)")
    command.set_defaults(trains=True)


def _train(options: argparse.Namespace) -> int:
    from janus.training import commands

    return commands.train(
        options.recipe, options.changes, out=options.out, dry=options.dry_run, device=options.device
    )


def _plot_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    command.add_argument("-o", "--output", type=Path, default=Path("curves.png"), help="(%(default)s)")


def _plot(options: argparse.Namespace) -> int:
    from janus.training import commands

    return commands.plot(options.runs, options.output)


def _data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("check",), help="check: list whatever is wrong with a file")
    command.add_argument("file", type=Path, help="JSON lines")
    command.add_argument("-m", "--model", help="hub id or folder of a checkpoint")
    command.add_argument("--limit", type=int, help="the most tokens of a row (the model's window)")
    command.add_argument("--system", help='system prompt (the family\'s own; "" for none)')
    command.add_argument(
        "--skip-bad", action="store_true", help="list unusable rows in a file, for training to pass over"
    )
    command.add_argument(
        "--rejects", type=Path, metavar="FILE", help="that file (rejects.jsonl beside the data)"
    )


def _data(options: argparse.Namespace) -> int:
    from janus.training import commands

    return commands.check(
        options.file,
        model=options.model,
        limit=options.limit,
        system=options.system,
        skip_bad=options.skip_bad,
        rejects=options.rejects,
    )


def _pretokenize_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help="JSON lines, tar shards, or a pattern with *: prompts with pictures")
    command.add_argument("-o", "--output", type=Path, required=True, help="the folder of codes")
    command.add_argument("-m", "--model", help="hub id or folder of a checkpoint")
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (the best there is)")
    command.add_argument("--shard-rows", type=int, default=1000, help="rows of a file (%(default)s)")
    command.add_argument("--batch-size", type=int, default=16, help="pictures at once (%(default)s)")


def _pretokenize(options: argparse.Namespace) -> int:
    from janus.training import commands

    return commands.pretokenize(
        options.source,
        options.output,
        model=options.model,
        device=options.device,
        shard_rows=options.shard_rows,
        batch_size=options.batch_size,
    )


def _doctor_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", type=Path, metavar="FILE", help="write the findings there too")


def _doctor(options: argparse.Namespace) -> int:
    from janus.apps import doctor

    return doctor.run(options.json)


COMMANDS = {
    "ask": Command(
        _ask,
        _ask_options,
        "Answer one question about no, one or many pictures.",
        'janus ask "What is in the picture?" --image cat.png -m deepseek-ai/Janus-Pro-1B',
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
        "Send a picture through the picture tokenizer and back.",
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
    "train": Command(
        _train,
        _train_options,
        "Train a model, or go on with a run; several processes: torchrun --nproc-per-node 2 -m janus train …",
        "janus train sft data.sources.0.path=mine.jsonl steps=500 --out runs/mine",
    ),
    "plot": Command(
        _plot,
        _plot_options,
        "Draw the curves of one or more runs into a PNG file.",
        "janus plot runs/one runs/other -o curves.png",
    ),
    "data": Command(
        _data,
        _data_options,
        "Check training data: lengths, pictures, placeholders.",
        "janus data check train.jsonl -m deepseek-ai/Janus-Pro-1B --limit 2048",
    ),
    "pretokenize": Command(
        _pretokenize,
        _pretokenize_options,
        "Turn the pictures that are to be drawn into codes, once, before training.",
        "janus pretokenize drawings.jsonl -o codes -m deepseek-ai/Janus-Pro-1B",
    ),
    "doctor": Command(
        _doctor,
        _doctor_options,
        "Check this installation: torch, GPU, triton, cache, memory.",
        "janus doctor",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="janus", description=DESCRIPTION)
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        its_parser = added.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        its_parser.set_defaults(run=command.run)
        command.options(its_parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; -> its exit status. What a user can cause is one line on stderr and status 2."""
    options = build_parser().parse_args(arguments)
    if not _is_parallel(options):
        return _run(options)
    from janus.inference.ranks import abandon

    try:
        status = _run(options)
    except Exception:
        traceback.print_exc()
        abandon(1)
    if status:
        abandon(status)
    from torch.distributed import destroy_process_group

    destroy_process_group()
    return status


def _run(options: argparse.Namespace) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # an answer may hold what the output's encoding has no letter for
    silence = contextlib.nullcontext() if _shows(options) else contextlib.redirect_stdout(io.StringIO())
    try:
        with warnings.catch_warnings(), silence:
            warnings.showwarning = lambda text, *_: print(f"janus: warning: {text}", file=sys.stderr)
            status = options.run(options)
            sys.stdout.flush()  # here, where a closed pipe is understood, and not as Python exits
            return status
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(_is_parallel(options))  # other processes wait for this one: torchrun ends them if it fails
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        # torch raises its own class on CUDA and plain errors elsewhere, all with words like these.
        if not any(words in str(error).lower() for words in ("out of memory", "can't allocate memory")):
            raise
        remedy = "take a smaller model, a 16-bit dtype, or draw fewer pictures at once"
        message = f"{str(error).split('. ')[0]}: {remedy}"
    print(f"janus: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
