"""The commands around training: train, plot, data, pretokenize, eval."""

import argparse
from pathlib import Path

from janus.apps.command import Command, add_model_options, add_vae_option, load_pipeline


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


def _purpose_options(command: argparse.ArgumentParser) -> None:
    purpose = command.add_mutually_exclusive_group()
    purpose.add_argument(
        "-m", "--model", help="the model that they are for: hub id or folder of a checkpoint"
    )
    purpose.add_argument(
        "--recipe", help="or the recipe that will train it: a file, or the name of one shipped"
    )


def _data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("check",), help="check: list whatever is wrong with a file")
    command.add_argument("file", type=Path, help="JSON lines")
    _purpose_options(command)
    command.add_argument(
        "--limit",
        type=int,
        help="the most tokens of a row (the recipe's sequence_length, the model's window)",
    )
    command.add_argument(
        "--skip-bad",
        action="store_true",
        help="list unusable rows in rejects.jsonl beside the file: training passes over them",
    )


def _data(options: argparse.Namespace) -> int:
    from janus.training import commands

    return commands.check(
        options.file,
        model=options.model,
        recipe=options.recipe,
        limit=options.limit,
        skip_bad=options.skip_bad,
    )


def _pretokenize_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help="JSON lines, tar shards, or a pattern with *: prompts with pictures")
    command.add_argument("-o", "--output", type=Path, required=True, help="the folder of codes")
    _purpose_options(command)
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (the best there is)")
    command.add_argument("--shard-rows", type=int, default=1000, help="rows of a file (%(default)s)")
    command.add_argument("--batch-size", type=int, default=16, help="pictures at once (%(default)s)")


def _pretokenize(options: argparse.Namespace) -> int:
    from janus.training import commands

    return commands.pretokenize(
        options.source,
        options.output,
        model=options.model,
        recipe=options.recipe,
        device=options.device,
        shard_rows=options.shard_rows,
        batch_size=options.batch_size,
    )


def _eval_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("world", choices=("shapes",), help="what to evaluate on")
    command.add_argument(
        "--samples", type=int, default=1000, help="length of each list of prompts and questions (%(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the lists and the drawings (%(default)s)")
    command.add_argument("--split", choices=("test", "validation"), default="test", help="(%(default)s)")
    command.add_argument(
        "--color",
        metavar="NAME",
        help="of scenes with something of this color only; orange is one that training does not see",
    )
    command.add_argument(
        "--batch-size", type=int, help="drawings and answers at once (what memory allows, at most 16)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the scores there too")
    command.add_argument(
        "--grid", type=Path, metavar="FILE", help="draw the first sixteen held-out prompts into a PNG file"
    )
    add_model_options(command)
    add_vae_option(command)


def _eval(options: argparse.Namespace) -> int:
    from janus.evaluation import commands

    return commands.shapes(
        lambda: load_pipeline(options),
        samples=options.samples,
        seed=options.seed,
        split=options.split,
        color=options.color,
        batch_size=options.batch_size,
        json_path=options.json,
        grid_path=options.grid,
    )


COMMANDS = {
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
        "janus data check train.jsonl --recipe sft",
    ),
    "pretokenize": Command(
        _pretokenize,
        _pretokenize_options,
        "Turn the pictures that are to be drawn into codes, once, before training.",
        "janus pretokenize drawings.jsonl -o data/codes -m deepseek-ai/Janus-Pro-1B",
    ),
    "eval": Command(
        _eval,
        _eval_options,
        "Score a model: pictures reconstructed, drawn and asked about, judged exactly.",
        "janus eval shapes --samples 200 --json scores.json -m ./runs/shapes-stage5",
    ),
}
