"""Columns of numbers from lists of arbitrary JSON values; fast when every value is a number."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np

FINE, TEXT, BROKEN = 0, 1, 2
"""State of a value: a number, a number written as text, not a number."""

_INT64 = 2**63


def integer(value: Any) -> tuple[int | None, bool]:
    """A whole number of 64 bits or None, and whether it was written as text."""
    text = isinstance(value, str) and len(value) <= 24
    if text or (isinstance(value, float) and value.is_integer()):
        with suppress(ValueError):
            value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None, False
    return (value, text) if -_INT64 <= value < _INT64 else (None, False)


def number(value: Any) -> tuple[float | None, bool]:
    """A float (NaN and infinity included) or None, and whether it was written as text."""
    text = isinstance(value, str) and len(value) <= 40
    if isinstance(value, bool) or not (text or isinstance(value, int | float)):
        return None, False
    try:
        return float(value), text
    except ValueError:
        return None, False
    except OverflowError:
        return float("inf"), False


def integers(values: list[Any], default: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 and (N,) int8 states; broken values become ``default``."""
    return _column(values, {int}, integer, np.full(len(values), default, dtype=np.int64))


def numbers(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float64 and (N,) int8 states; broken values become NaN."""
    return _column(values, {int, float}, number, np.full(len(values), np.nan))


def boxes_column(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) float64 and (N,) int8 states of lists that should hold four numbers."""
    rows = [v if isinstance(v, list) and len(v) == 4 else (None,) * 4 for v in values]
    column, states = numbers(list(chain.from_iterable(rows)))
    return column.reshape(-1, 4), states.reshape(-1, 4).max(axis=1, initial=FINE)


def _column(
    values: list[Any], plain: set[type], read: Callable[[Any], Any], column: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values as the column's type; ``column`` holds the default."""
    states = np.zeros(len(values), dtype=np.int8)
    if set(map(type, values)) <= plain:
        with suppress(OverflowError):
            return np.array(values, dtype=column.dtype), states
    for i, value in enumerate(values):
        found, text = read(value)
        if found is None:
            states[i] = BROKEN
        else:
            column[i] = found
            states[i] = TEXT if text else FINE
    return column, states
