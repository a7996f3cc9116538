"""TOML beyond what the standard library does: in which line each key stands, and writing.

`key_lines` reads text that `tomllib` has read already, so it need not find mistakes, only keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from janus.training.recipe.fields import Path

# What separates keys and values, comments included; and what a value that is neither table nor list can be.
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\n#]+")


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every key and list item of valid TOML, by its path; a table's is its header's."""
    return _Scanner(text).run()


class _Scanner:
    """A place in the text, and the lines found so far."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.lines: dict[Path, int] = {}
        self.lengths: dict[Path, int] = {}  # of lists of tables, so far

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip() < len(self.text):
            if self._at("["):
                table = self._header()
            else:
                self._pair(table)
        return self.lines

    def _skip(self) -> int:
        found = _BLANK.match(self.text, self.place)
        assert found is not None  # it matches nothing, too
        self.place = found.end()
        return self.place

    def _at(self, mark: str) -> bool:
        return self.text.startswith(mark, self.place)

    def _take(self, mark: str) -> bool:
        """Whether `mark` comes next; it is then behind."""
        found = self._at(mark)
        self.place += len(mark) if found else 0
        return found

    def _ends(self, mark: str) -> bool:
        """Whether a list or an inline table ends here; if not, its next member begins here."""
        self._skip()
        self._take(",")
        self._skip()
        return self._take(mark)

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.place)
        assert found is not None, self.text[self.place : self.place + 20]
        self.place = found.end()
        return found[0]

    def _note(self, path: Path, place: int) -> None:
        """A key of several names opens a table for each but the last; the first line of each stays."""
        line = self.text.count("\n", 0, place) + 1
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def _names(self) -> tuple[str, ...]:
        """A key, dotted or not."""
        names: list[str] = []
        while not names or self._take("."):
            self._skip()
            quoted = self.text[self.place] in "\"'"
            name = self._match(_STRING if quoted else _BARE)
            names.append(_unquoted(name) if quoted else name)
            self._skip()
        return tuple(names)

    def _header(self) -> Path:
        """[table] or [[list of tables]] -> its path."""
        start = self.place
        several = self._at("[[")
        self._take("[[" if several else "[")
        path = self._inside(self._names())
        self._take("]]" if several else "]")
        if several:
            at = self.lengths.get(path, 0)
            self.lengths[path] = at + 1
            self._note(path, start)
            path = (*path, at)
        self._note(path, start)
        return path

    def _inside(self, names: tuple[str, ...]) -> Path:
        """The path of a header's names: on the way, a list of tables stands for the last of them."""
        path: Path = ()
        for number, name in enumerate(names):
            path = (*path, name)
            if number < len(names) - 1 and path in self.lengths:
                path = (*path, self.lengths[path] - 1)
        return path

    def _pair(self, table: Path) -> None:
        start = self.place
        path = (*table, *self._names())
        self._note(path, start)
        self._take("=")
        self._skip()
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._take("["):
            at = 0
            while not self._ends("]"):
                self._note((*path, at), self.place)
                self._value((*path, at))
                at += 1
        elif self._take("{"):
            while not self._ends("}"):
                self._pair(path)
        elif self.text[self.place] in "\"'":
            self._match(_STRING)
        else:
            self._match(_SCALAR)


def _unquoted(name: str) -> str:
    """A quoted key's text: basic strings have JSON's escapes, and \\UXXXXXXXX."""
    if name[0] == "'":
        return name[1:-1]
    wide = re.compile(r"((?:^|[^\\])(?:\\\\)*)\\U([0-9a-fA-F]{8})")
    body = wide.sub(lambda found: found[1] + chr(int(found[2], 16)), name[1:-1])
    return json.loads(f'"{body}"', strict=False)


def write_toml(table: Mapping[str, Any]) -> str:
    """The TOML of tables, lists, texts, whole numbers, finite floats and booleans; None is left out.

    Lists of tables, of which none may be empty, are written as such; no other list may hold a table.
    """
    return "\n".join(_lines(table, ())).strip() + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Values first: what follows a header belongs to it."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping) or _is_tables(value)}
    for key, value in table.items():
        if key not in inner and value is not None:
            yield f"{_key(key)} = {_scalar(value)}"
    for key, value in inner.items():
        name = ".".join(map(_key, (*path, key)))
        for each in [value] if isinstance(value, Mapping) else value:
            yield ""
            yield f"[{name}]" if isinstance(value, Mapping) else f"[[{name}]]"
            yield from _lines(each, (*path, key))


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _scalar(name)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    return repr(value)
