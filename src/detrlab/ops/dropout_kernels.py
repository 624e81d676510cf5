"""The loops of dropout, compiled by Numba for one dtype.

Whether element i is kept follows from a hash of i and a 64-bit key, so nothing has to be drawn
in advance or remembered for the backward pass, and any number of threads gives the same bits.
The loops are plain: LLVM turns them into vectors by itself.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types

from detrlab.ops.vectors import pointer, take_ticket

CHUNK = 1 << 15
"""Elements of a task."""


class Field(enum.IntEnum):
    """The int64 fields that a kernel reads."""

    TICKET = 0  # the next task; the threads count it up
    SIZE = enum.auto()
    FIRST_KEY = enum.auto()
    SECOND_KEY = enum.auto()
    LIMIT = enum.auto()  # an element is kept where its 32-bit hash is below
    SCALE = enum.auto()  # address of one number
    INPUT = enum.auto()
    OTHER = enum.auto()  # what to add; for ``relu_backward`` the output
    OUTPUT = enum.auto()


_SIZE, _FIRST_KEY, _SECOND_KEY = map(int, (Field.SIZE, Field.FIRST_KEY, Field.SECOND_KEY))
_LIMIT, _SCALE, _INPUT = map(int, (Field.LIMIT, Field.SCALE, Field.INPUT))
_OTHER, _OUTPUT = map(int, (Field.OTHER, Field.OUTPUT))
_SIGNATURE = types.void(types.CPointer(types.int64))


@njit(forceinline=True)
def _hash(value: Any) -> Any:
    """A mixing of 32 bits in which every input bit reaches every output bit.

    Source: C. Wellons, "Prospecting for hash functions" (lowbias32, public domain).
    """
    value = np.uint32(value ^ (value >> np.uint32(16)))
    value = np.uint32(value * np.uint32(0x7FEB352D))
    value = np.uint32(value ^ (value >> np.uint32(15)))
    value = np.uint32(value * np.uint32(0x846CA68B))
    return np.uint32(value ^ (value >> np.uint32(16)))


@njit(forceinline=True)
def _kept(index: Any, first_key: Any, second_key: Any, limit: Any) -> Any:
    """Whether an element is kept; two rounds, because keys of one would only shift the stream."""
    mixed = _hash(np.uint32(np.uint32(index) ^ first_key))
    return _hash(np.uint32(mixed + second_key)) < limit


def compile_kernel(dtype: Any, kind: str, *, cache: bool) -> Any:
    """One kernel.

    Args:
        dtype: ``numpy.float32`` or ``numpy.float64``.
        kind: ``drop``: kept inputs, scaled; ``relu``: the same of their positive part;
            ``add``: the same added to another tensor; ``relu_backward``: the inputs where the
            output of ``relu`` is positive, scaled.
        cache: keep the compiled code on disk.

    Returns:
        A Numba callback whose ``address`` takes a pointer to the block of fields.
    """
    zero = dtype(0)
    relu, add, backward = kind == "relu", kind == "add", kind == "relu_backward"

    def kernel(data: Any) -> None:
        block = carray(data, (16,), np.int64)
        size = block[_SIZE]
        first_key, second_key = np.uint32(block[_FIRST_KEY]), np.uint32(block[_SECOND_KEY])
        limit = np.uint32(block[_LIMIT])
        scale = carray(pointer(block[_SCALE]), (1,), dtype)[0]
        inputs = carray(pointer(block[_INPUT]), (size,), dtype)
        others = carray(pointer(block[_OTHER]), (size,), dtype)
        outputs = carray(pointer(block[_OUTPUT]), (size,), dtype)
        while True:
            start = take_ticket(block) * CHUNK
            if start >= size:
                break
            stop = min(start + CHUNK, size)
            if backward:
                for i in range(start, stop):
                    outputs[i] = inputs[i] * scale if others[i] > zero else zero
            elif add:
                for i in range(start, stop):
                    kept = _kept(i, first_key, second_key, limit)
                    outputs[i] = others[i] + (inputs[i] * scale if kept else zero)
            elif relu:
                for i in range(start, stop):
                    kept = _kept(i, first_key, second_key, limit)
                    # Written so that NaN is not taken for negative.
                    outputs[i] = zero if inputs[i] < zero or not kept else inputs[i] * scale
            else:
                for i in range(start, stop):
                    kept = _kept(i, first_key, second_key, limit)
                    outputs[i] = inputs[i] * scale if kept else zero

    return cfunc(_SIGNATURE, error_model="numpy", cache=cache)(kernel)
