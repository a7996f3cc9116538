"""What users pass and what goes wrong, told alike everywhere: in one line, with the name and the value."""

import math
import operator
from typing import Any


def require_whole(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int; ValueError unless it is a whole number (numpy's count too), and at least `least`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} must be a whole number{bound}, not {value!r}")
    return number


def require_number(
    name: str, value: Any, wanted: str, least: float = -math.inf, most: float = math.inf
) -> None:
    """ValueError unless `value` is a finite number from `least` to `most`; `wanted` says so in words."""
    if not is_number(value) or not least <= value <= most:
        raise ValueError(f"{name} must be {wanted}, not {value!r}")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number: no bool, and no whole number beyond what a float can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def one_line(error: BaseException, limit: int = 160) -> str:
    """An exception's class and the first line of its text that says anything, cut to `limit` characters."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
