"""The commands that the documents show: each of them parses."""

import re
import shlex
from pathlib import Path

import pytest

from janus.apps.cli import build_parser
from janus.training.recipe.file import shipped

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def commands(text: str) -> list[list[str]]:
    """The words after `janus` of each command in a document's blocks of shell, with its own variables."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        variables = dict(re.findall(r'^(\w+)="(.*)"$', block, flags=re.MULTILINE))
        for line in lines:
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words[:1] == ["janus"] or words[:1] == ["torchrun"] or words[:3] == ["python", "-m", "janus"]:
                found.append(words[words.index("janus") + 1 :])
    return found


SHOWN = [
    pytest.param(words, id=f"{document.stem}: {' '.join(words)[:60]}")
    for document in DOCUMENTS
    for words in commands(document.read_text())
]


def test_there_are_commands() -> None:
    assert {parameter.values[0][0] for parameter in SHOWN} >= {"draw", "ask", "train", "eval", "pretokenize"}
    assert len(SHOWN) > 20


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_of_the_documents_parses(words: list[str]) -> None:
    options = build_parser().parse_args(words)
    if options.command == "train":
        assert options.recipe in shipped()
        assert all("=" in change for change in options.changes)
