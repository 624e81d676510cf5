"""Lists of whatever a json file holds, turned into numpy columns: fast when all is well."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

FINE, REPAIRED, BROKEN = 0, 1, 2
"""State of a value: as it should be, a number written as text, unusable."""

_LIMIT = 2**63


def integer(value: Any) -> tuple[int | None, bool]:
    """A whole number in 64 bits, and whether it had to be read out of a text."""
    if isinstance(value, bool):
        return None, False
    if isinstance(value, int):
        return (value, False) if -_LIMIT <= value < _LIMIT else (None, False)
    if isinstance(value, float) and value.is_integer() and abs(value) < _LIMIT:
        return int(value), False
    if isinstance(value, str) and len(value) <= 24:
        try:
            number = int(value)
        except ValueError:
            return None, False
        return (number, True) if -_LIMIT <= number < _LIMIT else (None, False)
    return None, False


def number(value: Any) -> tuple[float | None, bool]:
    """A float (NaN and infinity included), and whether it had to be read out of a text."""
    if isinstance(value, bool):
        return None, False
    if isinstance(value, int | float):
        try:
            return float(value), False
        except OverflowError:
            return float("inf"), False
    if isinstance(value, str) and len(value) <= 40:
        try:
            return float(value), True
        except ValueError:
            return None, False
    return None, False


def integers(values: list[Any], default: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 and (N,) int8 states; broken values become ``default``."""
    if set(map(type, values)) <= {int}:
        try:
            return np.array(values, dtype=np.int64), np.zeros(len(values), dtype=np.int8)
        except OverflowError:
            pass
    column = np.full(len(values), default, dtype=np.int64)
    states = np.zeros(len(values), dtype=np.int8)
    for i, value in enumerate(values):
        whole, text = integer(value)
        if whole is None:
            states[i] = BROKEN
        else:
            column[i] = whole
            states[i] = REPAIRED if text else FINE
    return column, states


def numbers(values: list[Any]) -> np.ndarray:
    """(N,) float64, NaN where there is no number."""
    if set(map(type, values)) <= {int, float}:
        try:
            return np.array(values, dtype=np.float64)
        except OverflowError:
            pass
    found = (number(value)[0] for value in values)
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def boxes_column(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) float64 and (N,) int8 states of lists that should hold four numbers."""
    if not values:
        return np.zeros((0, 4)), np.zeros(0, dtype=np.int8)
    if set(map(type, values)) == {list} and set(map(len, values)) == {4}:
        flat = list(chain.from_iterable(values))
        if set(map(type, flat)) <= {int, float}:
            try:
                column = np.array(flat, dtype=np.float64).reshape(-1, 4)
            except OverflowError:
                pass
            else:
                return column, np.zeros(len(values), dtype=np.int8)
    column = np.zeros((len(values), 4))
    states = np.full(len(values), BROKEN, dtype=np.int8)
    for i, value in enumerate(values):
        if not isinstance(value, list | tuple) or len(value) != 4:
            continue
        parts = [number(part) for part in value]
        if all(part is not None for part, _ in parts):
            column[i] = [part for part, _ in parts]
            states[i] = REPAIRED if any(text for _, text in parts) else FINE
    return column, states
