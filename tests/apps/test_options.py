"""Every option of the command line reaches the call that it is for; every help shows a line that works."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import janus
from janus.apps import cli, info
from janus.evaluation import commands as evaluation
from janus.training import commands as training

LOADING = ["-m", "a/b", "--device", "cpu", "--dtype", "float32", "--revision", "v1", "--corrected-pictures"]
SPEAKING = [*LOADING, "--quantize", "int8", "--compile"]
LOADED = {
    "device": "cpu",
    "dtype": "float32",
    "revision": "v1",
    "corrected_pictures": True,
    "quantize": "int8",
    "compile": True,
    "tensor_parallel": False,
    "vae": None,
}
ANSWERING = [
    "--system",
    "S",
    "--max-new-tokens",
    "3",
    "--temperature",
    "0.5",
    "--top-p",
    "0.8",
    "--seed",
    "4",
]
ANSWERED = {"system": "S", "max_new_tokens": 3, "temperature": 0.5, "top_p": 0.8, "seed": 4}
DRAWING = {
    "n": 2,
    "guidance": 3.0,
    "batch_size": 5,
    "temperature": 0.5,
    "top_k": 6,
    "top_p": 0.8,
    "speculate": 7,
    "prefix": "a.png",
    "rows": 1,
    "steps": 8,
    "size": 64,
    "method": "heun",
}

Call = tuple[str, tuple[Any, ...], dict[str, Any]]

# What is typed, and the calls that it comes to.
CASES: list[tuple[list[str], list[Call]]] = [
    (
        ["ask", "a.png", "What?", "-i", "b.png", *ANSWERING, *SPEAKING],
        [
            ("load", ("a/b",), LOADED),
            ("ask", ("What?", ["a.png", "b.png"]), {"stream": True, **ANSWERED}),
        ],
    ),
    (
        ["chat", "-i", "a.png", *ANSWERING, *SPEAKING],
        [
            ("load", ("a/b",), LOADED),
            ("chat", (), {"stream": True, **ANSWERED}),
        ],
    ),
    (
        [
            *["draw", "one", "two", "-o", "new.png", "--seed", "4", "--vae", "c/d", *SPEAKING],
            *(
                word
                for name, value in DRAWING.items()
                for word in ("-n" if name == "n" else f"--{name.replace('_', '-')}", str(value))
            ),
        ],
        [
            ("load", ("a/b",), {**LOADED, "vae": "c/d"}),
            ("draw", (["one", "two"],), {"seed": 4, "progress": None, **DRAWING}),
        ],
    ),
    (
        ["reconstruct", "a.png", "-o", "new.png", "--vae", "c/d", *LOADING],
        [
            ("load", ("a/b",), {**LOADED, "quantize": None, "compile": False, "vae": "c/d"}),
            ("reconstruct", ("a.png",), {}),
        ],
    ),
    (
        [
            *["info", "-m", "a/b", "--revision", "v1", "--vae", "c/d", "--pictures", "2"],
            *["--prompt-tokens", "3", "--answer-tokens", "4", "--check", "--json", "facts.json"],
        ],
        [
            (
                "info",
                ("a/b",),
                {
                    "vae": "c/d",
                    "revision": "v1",
                    "pictures": 2,
                    "prompt": 3,
                    "answer": 4,
                    "check": True,
                    "json_path": Path("facts.json"),
                },
            )
        ],
    ),
    (
        ["train", "sft", "steps=3", "--out", "run", "--dry-run", "--device", "cpu"],
        [("train", ("sft", ["steps=3"]), {"out": Path("run"), "dry": True, "device": "cpu"})],
    ),
    (
        ["plot", "one", "two", "-o", "new.png"],
        [("plot", ([Path("one"), Path("two")], Path("new.png")), {})],
    ),
    (
        ["data", "check", "rows.jsonl", "--recipe", "sft", "--limit", "9", "--skip-bad"],
        [("check", (Path("rows.jsonl"),), {"model": None, "recipe": "sft", "limit": 9, "skip_bad": True})],
    ),
    (
        [
            *["pretokenize", "rows.jsonl", "-o", "codes", "-m", "a/b", "--device", "cpu"],
            *["--shard-rows", "7", "--batch-size", "3"],
        ],
        [
            (
                "pretokenize",
                ("rows.jsonl", Path("codes")),
                {"model": "a/b", "recipe": None, "device": "cpu", "shard_rows": 7, "batch_size": 3},
            )
        ],
    ),
    (
        [
            *["eval", "shapes", "--samples", "5", "--seed", "2", "--split", "validation", "--color", "red"],
            *["--batch-size", "3", "--json", "s.json", "--grid", "g.png", "--vae", "c/d", *SPEAKING],
        ],
        [
            ("load", ("a/b",), {**LOADED, "vae": "c/d"}),
            (
                "eval",
                (),
                {
                    "samples": 5,
                    "seed": 2,
                    "split": "validation",
                    "color": "red",
                    "batch_size": 3,
                    "json_path": Path("s.json"),
                    "grid_path": Path("g.png"),
                },
            ),
        ],
    ),
]
# Whose options have tests of their own: what they do is not one call. --tensor-parallel needs processes.
ELSEWHERE = {"convert", "doctor"}


class Calls(list[Call]):
    """Stands in for a pipeline, and for whatever runs: it notes what it is called with."""

    model = None

    def noting(self, name: str, result: Any = None) -> Any:
        def note(*given: Any, **options: Any) -> Any:
            self.append((name, given, options))
            return result

        return note

    def __getattr__(self, name: str) -> Any:
        results = {
            "ask": ["Yes"],
            "draw": [Image.new("RGB", (8, 8))] * 4,
            "reconstruct": Image.new("RGB", (8, 8)),
        }
        return self.noting(name, results[name])

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> list[str]:
        assert messages[0]["content"][0] == {"type": "image", "image": "a.png"}
        self.append(("chat", (), options))
        return ["Yes"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    calls = Calls()
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(name)
    lines = iter(["Hello", ""])
    monkeypatch.setattr("janus.apps.use_commands._read_line", lambda: next(lines))
    monkeypatch.setattr("janus.inference.ranks.from_all_ranks", lambda model, value: [value])
    monkeypatch.setattr(janus, "load", calls.noting("load", calls))
    monkeypatch.setattr(info, "run", calls.noting("info", 0))

    def evaluate(load: Any, **options: Any) -> int:
        load()
        calls.append(("eval", (), options))
        return 0

    monkeypatch.setattr(evaluation, "shapes", evaluate)
    for name in ("train", "plot", "check", "pretokenize"):
        monkeypatch.setattr(training, name, calls.noting(name, 0))
    return calls


@pytest.mark.parametrize(("typed", "expected"), CASES, ids=[case[0][0] for case in CASES])
def test_what_is_typed_is_what_is_called(typed: list[str], expected: list[Call], calls: Calls) -> None:
    assert cli.main(typed) == 0
    assert calls == expected


def parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = [
        action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    ]
    return commands.choices


def test_no_option_is_left_untried() -> None:
    tried = {typed[0]: set(typed) for typed, _ in CASES}
    assert set(parsers()) == set(tried) | ELSEWHERE
    for name, words in tried.items():
        for action in parsers()[name]._actions:
            if action.option_strings and not {"--help", "--tensor-parallel"} & set(action.option_strings):
                exclusive = {"--recipe", "-m"} & set(action.option_strings) and {"--recipe", "-m"} & words
                assert exclusive or words & set(action.option_strings), f"{name}: {action.option_strings}"


@pytest.mark.parametrize("name", parsers())
def test_the_example_of_a_help_can_be_parsed(name: str) -> None:
    program, *words = shlex.split(parsers()[name].epilog.removeprefix("example:"))
    assert (program, words[0]) == ("janus", name)
    assert cli.build_parser().parse_args(words).run


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (KeyboardInterrupt(), 130, ""),
        (ValueError("steps = 0\nis none"), 2, "janus: error: steps = 0 is none\n"),
        (RuntimeError("CUDA out of memory. Tried to"), 2, "CUDA out of memory: take a smaller model"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "or draw fewer pictures at once"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line(
    raised: BaseException,
    status: int,
    told: str,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(janus, "load", fail)
    assert cli.main(["ask", "What?"]) == status
    lines = capsys.readouterr().err
    assert told in lines
    assert lines.count("\n") == bool(told)


def test_other_errors_are_not_hidden(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(janus, "load", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["ask", "What?"])
