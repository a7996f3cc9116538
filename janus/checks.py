"""What users pass and what goes wrong, told alike everywhere: in one line, with the name and the value."""

import math
import operator
from numbers import Real
from typing import Any

# What helps where a model computes NaN.
NOT_NUMBERS = "look for damaged weights with janus info --check, or load in float32 if this is a 16-bit dtype"

MOST_GUIDANCE = 1_000_000  # far beyond what draws anything; differences of logits stay numbers


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
) -> float:
    """`value` as a number of Python's; ValueError unless it is finite and from `least` to `most`.

    `wanted` says so in words. numpy's numbers count too.
    """
    if not is_number(value) or not least <= value <= most:
        raise ValueError(f"{name} must be {wanted}, not {value!r}")
    return value if isinstance(value, int | float) else float(value)


def require_guidance(value: Any) -> float:
    """The scale of classifier-free guidance as a number of Python's; ValueError beyond `MOST_GUIDANCE`."""
    wanted = f"a number from {-MOST_GUIDANCE} to {MOST_GUIDANCE}, 1 for none"
    return require_number("guidance", value, wanted, least=-MOST_GUIDANCE, most=MOST_GUIDANCE)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number: no bool, and no whole number beyond what a float can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        return False


def one_line(error: BaseException, limit: int = 160) -> str:
    """An exception's class and the first line of its text that says anything, cut to `limit` characters."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
