"""YAML with the lines of its keys, where pyyaml is installed; import this inside the function that needs it.

Read as safe YAML 1.1, but 1e-4 is a number, as everywhere else, and keys that are given twice are an error.
"""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped]

from janus.training.recipe.fields import Path


class _Loader(yaml.SafeLoader):
    """Safe, with numbers that YAML 1.1 takes for texts because they have no point."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"), list("-+0123456789")
)


def read_yaml(text: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """The values, and the line, from 1, of every key and list item. Raises yaml.YAMLError with its mark."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return {}, {}
        if not isinstance(root, yaml.MappingNode):
            raise _problem("not a table of keys", root)
        lines: dict[Path, int] = {}
        _walk(loader, root, (), lines, set())
        return loader.construct_document(root), lines
    finally:
        loader.dispose()


def _walk(loader: _Loader, node: Any, path: Path, lines: dict[Path, int], seen: set[Any]) -> None:
    """Note the lines of what is inside a node; raise for what would not be a plain tree of texts' values."""
    if node in seen:
        raise _problem("aliases are not read: write it out", node)
    seen.add(node)
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            lines[(*path, place)] = item.start_mark.line + 1
            _walk(loader, item, (*path, place), lines, seen)
    elif isinstance(node, yaml.MappingNode):
        here = set()
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _problem(f"the key {key.value} is not a text", key)
            if key.value in here:
                raise _problem(f"the key {key.value} is given twice", key)
            here.add(key.value)
            lines[(*path, key.value)] = key.start_mark.line + 1
            _walk(loader, value, (*path, key.value), lines, seen)
    else:
        try:
            loader.construct_object(node)
        except ValueError as error:
            raise _problem(f"{node.value} is not a value ({error})", node) from None


def _problem(text: str, node: Any) -> Exception:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)
