"""Lines of keys in TOML of every form, and TOML that reads back as it was written."""

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.training.recipe.fields import Path
from janus.training.recipe.toml import key_lines, write_toml

EVERY_FORM = '''# a comment with = and [brackets]
task = "janus" # and another = one
"quoted key" = 'literal = "text"'
"with \\"quotes\\" and \\u00e9" = 1
dotted.inner . deep = 1979-05-27T07:32:00Z
several = [1, 2,
  3, # last

]
text = """
not_a_key = 1 \\""" [table]
"""
raw = \'\'\'
[also.no.table]'' \'\'\'
inline = { one = 1, two = { three = "}" } , four = [ { five = 5 } ] }
[table]
key=true

  [ table . "sub" ]
key = -inf
[[list]]
name = "a"
[list.inner]
x = 1
[[list.more]]
y = 1
[[list.more]]
y = 2
[[list]]
name = "b"
[list.inner]
x = 2
[[deep.er]]
z = []
'''


def paths(value: Any, path: Path = ()) -> set[Path]:
    """Of all keys and items."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return {inner for key, each in items for inner in ({(*path, key)} | paths(each, (*path, key)))}


def test_every_form() -> None:
    lines = key_lines(EVERY_FORM)
    assert set(lines) == paths(tomllib.loads(EVERY_FORM))
    expected: dict[Path, int] = {
        ("task",): 2,
        ("quoted key",): 3,
        ('with "quotes" and é',): 4,
        ("dotted",): 5,
        ("dotted", "inner", "deep"): 5,
        ("several",): 6,
        ("several", 1): 6,
        ("several", 2): 7,
        ("text",): 10,
        ("raw",): 13,
        ("inline",): 15,
        ("inline", "two", "three"): 15,
        ("inline", "four", 0, "five"): 15,
        ("table",): 16,
        ("table", "key"): 17,
        ("table", "sub"): 19,
        ("table", "sub", "key"): 20,
        ("list",): 21,
        ("list", 0): 21,
        ("list", 0, "name"): 22,
        ("list", 0, "inner", "x"): 24,
        ("list", 0, "more"): 25,
        ("list", 0, "more", 1): 27,
        ("list", 0, "more", 1, "y"): 28,
        ("list", 1): 29,
        ("list", 1, "name"): 30,
        ("list", 1, "inner", "x"): 32,
        ("deep",): 33,
        ("deep", "er", 0, "z"): 34,
    }
    assert {path: lines[path] for path in expected} == expected


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("", None, 0),
        ("\n\n# nothing\n", None, 0),
        ("a = 1", ("a",), 1),
        ("\n[a]\n[a.b]\nc = '''\n'''\nd = 2", ("a", "b", "d"), 6),
        ("a = [[1, 2], [3]]\n", ("a", 1, 0), 1),
        ('"a.b" = 1', ("a.b",), 1),
        ('"\\U0001F600" = 1', ("\U0001f600",), 1),
        ("a.b = 1\n\na.c = 2", ("a", "c"), 3),
        ("1.2 = 3", ("1", "2"), 1),
        ('a = """x"""""\nb = 1', ("b",), 2),
    ],
    ids=[
        "empty",
        "comments",
        "end",
        "after-text",
        "lists",
        "dot-in-key",
        "wide",
        "again",
        "digits",
        "quotes",
    ],
)
def test_small_texts(text: str, path: Path | None, line: int) -> None:
    lines = key_lines(text)
    assert set(lines) == paths(tomllib.loads(text))
    assert path is None or lines[path] == line


keys = st.text(min_size=1, max_size=6) | st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
scalars = (
    st.text(max_size=8)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | st.lists(scalars | st.lists(scalars, max_size=2), max_size=3),
    lambda inner: (
        st.dictionaries(keys, inner, max_size=3)
        | st.lists(st.dictionaries(keys, inner, max_size=3), min_size=1, max_size=3)
    ),
    max_leaves=8,
)
tables = st.dictionaries(keys, values, max_size=4)


@settings(max_examples=50)
@given(tables)
def test_what_is_written_reads_back(table: dict[str, Any]) -> None:
    text = write_toml(table)
    assert tomllib.loads(text) == table


@settings(max_examples=50)
@given(tables)
def test_every_key_has_the_line_that_it_is_written_in(table: dict[str, Any]) -> None:
    text = write_toml(table)
    lines = key_lines(text)
    assert set(lines) == paths(table)
    written = text.split("\n")
    for path, number in lines.items():
        name = next(key for key in reversed(path) if isinstance(key, str))
        spelled = write_toml({name: 0}).partition(" = 0")[0]
        assert spelled in written[number - 1]


def test_none_is_left_out() -> None:
    assert write_toml({"a": None, "b": {"c": None}}) == "[b]\n"
