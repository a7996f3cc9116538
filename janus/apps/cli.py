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
from pathlib import Path
from typing import Any

import janus
from janus.apps import training_commands, use_commands
from janus.apps.command import Command, is_parallel, shows

DESCRIPTION = "Ask about pictures, draw them, and train: Janus, Janus-Pro and their like."


def _doctor_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", type=Path, metavar="FILE", help="write the findings there too")


def _doctor(options: argparse.Namespace) -> int:
    from janus.apps import doctor

    return doctor.run(options.json)


COMMANDS = {
    **use_commands.COMMANDS,
    **training_commands.COMMANDS,
    "doctor": Command(
        _doctor,
        _doctor_options,
        "Check this installation: torch, GPU, triton, cache, memory.",
        "janus doctor",
    ),
}


class _Mixing(argparse.ArgumentParser):
    """A command's parser, to which what stands after an option belongs to what stands before it.

    As argparse is, "train RECIPE --out FOLDER key=value" would end at the key: it takes all that has no
    option's name in one run, and has no way of saying otherwise of commands.
    """

    mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.mixing:  # called by the other, in Python below 3.12
            return super().parse_known_args(args, namespace)
        self.mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.mixing = False


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="janus", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"janus {janus.__version__}")
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Mixing)
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An answer, or a help text, may hold what the output's encoding has no letter for.
        sys.stdout.reconfigure(errors="replace")
    options = build_parser().parse_args(arguments)
    if not is_parallel(options):
        return _run(options)
    from janus.inference.ranks import abort

    try:
        status = _run(options)
    except Exception:
        traceback.print_exc()
        abort(1)
    if status:
        abort(status)
    from torch.distributed import destroy_process_group

    destroy_process_group()
    return status


def _run(options: argparse.Namespace) -> int:
    silence = contextlib.nullcontext() if shows(options) else contextlib.redirect_stdout(io.StringIO())
    try:
        with warnings.catch_warnings(), silence:
            warnings.showwarning = lambda text, *_: print(f"janus: warning: {text}", file=sys.stderr)
            status = options.run(options)
            sys.stdout.flush()  # here, where a closed pipe is understood, and not as Python exits
            return status
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(is_parallel(options))  # other processes wait for this one: torchrun ends them if it fails
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
