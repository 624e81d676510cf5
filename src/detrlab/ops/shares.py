"""Random numbers that belong to an image of a step, wherever that image is computed.

A step's images are split over processes and micro-batches. What is drawn for an image depends on
the seed, the step and the image's place in it, never on the split: so a step gives the same result
however it is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from detrlab.structures import Share

_MASK = (1 << 64) - 1

_current: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def computing(share: Share | None) -> Iterator[None]:
    """A block that computes, forward and backward, these images of a step."""
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def current_share() -> Share | None:
    """The images that are being computed; None outside of a training step."""
    return _current.get()


def image_generators(images: int) -> Iterator[torch.Generator]:
    """One random generator for each image of the batch, on the CPU; use each before the next.

    They follow from the state of PyTorch's own generator, which moves on by one number: the same
    in every process and micro-batch, if all have started with the same seed.

    Args:
        images: B; outside of a training step their places are 0..B-1.
    """
    share = current_share()
    places = range(images) if share is None else share.places
    assert len(places) == images, "the share says where each image of the batch belongs"
    base = int(torch.randint(1 << 62, (), dtype=torch.int64))
    generator = torch.Generator()
    for place in places:
        yield generator.manual_seed(_mixed(base + place))


def _mixed(number: int) -> int:
    """A number whose bits all depend on all bits of the given one (SplitMix64)."""
    number = (number * 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)
