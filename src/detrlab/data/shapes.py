"""The built-in generated data set ``shapes``: six kinds of figures among clutter.

``docs/data.md`` is its specification. Everything is integer arithmetic on the words of a
counter-based random generator, so that all machines and library versions draw the same pixels;
a test pins their hash. A change of any pixel or box needs a new data set with a new name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detrlab.data.images import ArrayPictures
from detrlab.data.table import Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = ("disc", "ring", "square", "triangle", "cross", "star")
TRAIN_IMAGES = 600
VAL_IMAGES = 200
FIRST_VAL_ID = 100_001
"""Training ids count from 1, validation ids from here."""

_STREAM = 0x736861706573  # "shapes"
_SIZES = ((160, 192), (160, 192), (192, 160), (144, 176), (176, 208))
_COSINES = (1024, 1004, 946, 851, 724, 569, 392, 200)  # 1024 cos(2 pi k / 32), k = 0..7
_PALETTE = np.array(
    [
        (214, 60, 52), (60, 168, 76), (56, 92, 212), (232, 196, 48), (164, 72, 188),
        (48, 188, 200), (236, 132, 44), (236, 236, 232), (28, 30, 36),
    ],
    dtype=np.int16,
)  # fmt: skip
# Outward normals of a regular pentagon's sides, times 1024.
_PENTAGON = ((0, 1024), (974, 316), (602, -828), (-602, -828), (-974, 316))


class Stamp(NamedTuple):
    """A rasterized figure.

    Attributes:
        coverage: (h, w) uint8, how many of 4 points of each pixel the figure covers.
        left: column of the first pixel, counted from the figure's center.
        top: row of the first pixel, counted from the figure's center.
        dark: (h, w) bool, where stripes darken the figure, if it is striped.
    """

    coverage: NDArray[Any]
    left: int
    top: int
    dark: NDArray[Any]


class Picture(NamedTuple):
    """One generated image.

    Attributes:
        pixels: (height, width, 3) uint8.
        boxes: (N, 4) int64, xywh, the extent of the visible part of each object.
        labels: (N,) int64 class indices.
    """

    pixels: NDArray[Any]
    boxes: NDArray[Any]
    labels: NDArray[Any]


class _Draws:
    """Small integers from the random stream of one image, computed without floats."""

    def __init__(self, number: int) -> None:
        self._bits = np.random.Philox(key=np.array([number, _STREAM], dtype=np.uint64))

    def below(self, bound: int) -> int:
        """The next integer in [0, bound)."""
        return (int(self._bits.random_raw()) >> 32) * bound >> 32

    def noise(self, count: int) -> NDArray[np.int16]:
        """``count`` bytes, as int16."""
        words = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].astype(np.int16)


def draw(number: int) -> Picture:
    """The image with this id; see ``docs/data.md``."""
    draws = _Draws(number)
    height, width = _SIZES[draws.below(len(_SIZES))]
    base = np.array([64 + draws.below(128) for _ in range(3)], dtype=np.int16)
    canvas = _background(draws, height, width, base)
    for _ in range(draws.below(7)):
        _clutter(draws, canvas, base)

    owner = np.full((height, width), -1, dtype=np.int16)
    labels: list[int] = []
    full: list[int] = []
    for _ in range(0 if draws.below(16) == 0 else 1 + draws.below(4) + draws.below(4)):
        _object(draws, canvas, base, owner, labels, full)

    for _ in range(draws.below(3)):
        _bar(draws, canvas, base, thickest=2)
    canvas += (draws.noise(canvas.size).reshape(canvas.shape) & 15) - 7
    boxes = np.array([_extent(owner == k) for k in range(len(labels))], dtype=np.int64)
    return Picture(
        pixels=canvas.clip(0, 255).astype(np.uint8),
        boxes=boxes.reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
    )


def _background(draws: _Draws, height: int, width: int, base: NDArray[Any]) -> NDArray[Any]:
    """Random colours every 32 pixels, interpolated linearly."""
    rows, columns = -(-height // 32) + 1, -(-width // 32) + 1
    # At most 31, so that the blend, times 1024, still fits 16 bits.
    knots = draws.noise(rows * columns * 3).reshape(rows, columns, 3) % 63 - 31
    y, x = np.arange(height, dtype=np.int16), np.arange(width, dtype=np.int16)
    fy, fx = (y % 32)[:, None, None], (x % 32)[None, :, None]
    lines = knots[y // 32] * (32 - fy) + knots[y // 32 + 1] * fy
    clouds = lines[:, x // 32] * (32 - fx)
    clouds += lines[:, x // 32 + 1] * fx
    clouds >>= 10
    clouds += base
    return clouds


def _clutter(draws: _Draws, canvas: NDArray[Any], base: NDArray[Any]) -> None:
    """One figure that is not an object: a bar, a flat ellipse or a dot."""
    kind = draws.below(3)
    if kind == 0:
        _bar(draws, canvas, base, thickest=5)
    elif kind == 1:
        _strew(draws, canvas, base, "ellipse", 4 * (8 + draws.below(24)))
    else:
        _strew(draws, canvas, base, "disc", 4 * (1 + draws.below(3)))


def _bar(draws: _Draws, canvas: NDArray[Any], base: NDArray[Any], thickest: int) -> None:
    thickness = 1 + draws.below(thickest)
    _strew(draws, canvas, base, f"bar{thickness}", 4 * (10 + draws.below(40)))


def _strew(draws: _Draws, canvas: NDArray[Any], base: NDArray[Any], kind: str, radius: int) -> None:
    """Draw a figure at a random place in a random visible colour."""
    stamp = _stamp(draws, kind, radius)
    x, y = draws.below(canvas.shape[1]), draws.below(canvas.shape[0])
    _paint(canvas, stamp, x, y, _colour(draws, base, home=None), striped=False)


def _colour(draws: _Draws, base: NDArray[Any], home: int | None) -> NDArray[Any]:
    """A colour that differs from the background; for half of the objects it is their class's."""
    choice = draws.below(len(_PALETTE))
    if home is not None and draws.below(2) == 0:
        choice = home
    shift = np.array([draws.below(41) - 20 for _ in range(3)], dtype=np.int16)
    for step in range(len(_PALETTE)):
        colour = (_PALETTE[(choice + step) % len(_PALETTE)] + shift).clip(0, 255)
        if np.abs(colour - base).sum() >= 150:
            break
    return colour


def _object(
    draws: _Draws,
    canvas: NDArray[Any],
    base: NDArray[Any],
    owner: NDArray[Any],
    labels: list[int],
    full: list[int],
) -> None:
    """Draw one object where all objects stay visible; give up after ten attempts.

    Args:
        draws: the image's stream.
        canvas: the image so far.
        base: the background's colour.
        owner: (H, W), the topmost object at each pixel, or -1.
        labels: class indices so far; the object's is added.
        full: pixels of each object if nothing covered it; the object's is added.
    """
    label = draws.below(len(CLASSES))
    colour = _colour(draws, base, home=label)
    striped = draws.below(4) == 0
    bucket = draws.below(20)
    if bucket < 7:
        side = 12 + draws.below(20)
    elif bucket < 14:
        side = 32 + draws.below(48)
    else:
        side = 80 + draws.below(61)
    stamp = _stamp(draws, CLASSES[label], 2 * side)
    body = int(np.count_nonzero(stamp.coverage >= 2))
    for _ in range(10):
        x, y = draws.below(canvas.shape[1]), draws.below(canvas.shape[0])
        part, window = _window(stamp, x, y, owner.shape)
        mask = stamp.coverage[part] >= 2
        if 2 * np.count_nonzero(mask) >= body and _shows_others(owner, window, mask, full):
            break
    else:
        return
    owner[window][mask] = len(labels)
    full.append(int(np.count_nonzero(mask)))
    labels.append(label)
    _paint(canvas, stamp, x, y, colour, striped)


def _shows_others(
    owner: NDArray[Any], window: tuple[slice, slice], mask: NDArray[Any], full: list[int]
) -> bool:
    """Whether at least 2/5 of every other object stay visible under this mask."""
    if not full:
        return True
    hidden = np.bincount(owner[window][mask] + 1, minlength=len(full) + 1)[1:]
    return all(
        5 * (np.count_nonzero(owner == k) - hidden[k]) >= 2 * full[k]
        for k in np.flatnonzero(hidden)
    )


def _stamp(draws: _Draws, kind: str, radius: int) -> Stamp:
    """Rasterize a figure, rotated and shifted by quarter pixels at random.

    Lengths are in quarter pixels; the 4 points of a pixel are at its 1/4 and 3/4.
    """
    angle, shift_x, shift_y = draws.below(32), draws.below(4), draws.below(4)
    reach = radius // 4 + 2
    pixels = np.arange(-reach, reach, dtype=np.int32)
    points = (4 * pixels[:, None] + np.array([1, 3], dtype=np.int32)).ravel()
    u, v = _turn(points[None, :] - shift_x, points[:, None] - shift_y, angle)
    inside = _inside(kind, radius, u, v).view(np.uint8)
    coverage = inside[::2, ::2] + inside[::2, 1::2] + inside[1::2, ::2] + inside[1::2, 1::2]
    stripes = (u[::2, ::2] // max(8, radius // 3)) & 1
    return Stamp(coverage, -reach, -reach, stripes == 1)


def _window(
    stamp: Stamp, x: int, y: int, shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a stamp inside the image if its center is at (x, y), and its place there."""
    part, window = [], []
    for low, side, bound in zip((y + stamp.top, x + stamp.left), stamp.coverage.shape, shape[:2],
                                strict=True):  # fmt: skip
        first, last = max(low, 0), min(low + side, bound)
        part.append(slice(first - low, last - low))
        window.append(slice(first, last))
    return (part[0], part[1]), (window[0], window[1])


def _turn(dx: NDArray[Any], dy: NDArray[Any], angle: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Coordinates along axes that are rotated by ``angle`` 32nds of a turn."""
    cosine, sine = _cosine(angle), _cosine(angle - 8)
    return dx * cosine + dy * sine >> 10, dy * cosine - dx * sine >> 10


def _cosine(step: int) -> int:
    """1024 times the cosine of ``step`` 32nds of a turn."""
    quarter, rest = divmod(step % 32, 8)
    backward = _COSINES[8 - rest] if rest else 0
    return (_COSINES[rest], -backward, -_COSINES[rest], backward)[quarter]


def _inside(kind: str, r: int, u: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
    """Which points, in the figure's own coordinates, a figure of radius r covers."""
    if kind == "disc":
        return u * u + v * v <= r * r
    if kind == "ring":
        squares = 100 * (u * u + v * v)
        return (squares <= 100 * r * r) & (squares >= 30 * r * r)
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= r * 181 >> 8
    if kind == "triangle":
        return (2 * v <= r) & (1774 * np.abs(u) - 1024 * v <= 1024 * r)
    if kind == "cross":
        near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
        return (10 * near <= 3 * r) & (20 * far <= 19 * r)
    if kind == "star":  # inside at least four of the pentagon's five sides
        sides = sum((nx * u + ny * v <= 317 * r).view(np.uint8) for nx, ny in _PENTAGON)
        return sides >= 4
    if kind == "ellipse":
        return u * u + 9 * v * v <= r * r
    assert kind.startswith("bar")
    return (np.abs(u) <= r) & (np.abs(v) <= 2 * int(kind[3:]))


def _paint(
    canvas: NDArray[Any], stamp: Stamp, x: int, y: int, colour: NDArray[Any], striped: bool
) -> None:
    """Blend a figure into the image by its coverage."""
    part, window = _window(stamp, x, y, canvas.shape)
    share = stamp.coverage[part].astype(np.int16)[..., None]
    dark = colour * 5 // 8
    fill = np.where(stamp.dark[part][..., None], dark, colour) if striped else colour
    blend = canvas[window] * (4 - share)
    blend += fill * share + 2
    canvas[window] = blend >> 2


def _extent(mask: NDArray[Any]) -> tuple[int, int, int, int]:
    """The extent of a mask, xywh."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def table(name: str, numbers: range) -> Table:
    """A table of the images with these ids."""
    pictures = [draw(number) for number in numbers]
    counts = [len(picture.labels) for picture in pictures]
    boxes = np.concatenate([np.zeros((0, 4)), *(picture.boxes for picture in pictures)])
    labels = [np.zeros(0, np.int64), *(picture.labels for picture in pictures)]
    sizes = np.array([picture.pixels.shape[:2] for picture in pictures], dtype=np.int32)
    ends = np.cumsum(np.prod(sizes, axis=1, dtype=np.int64) * 3)
    ids = np.array(numbers, dtype=np.int64)
    return Table(
        name=name,
        classes=CLASSES,
        category_ids=tuple(range(1, len(CLASSES) + 1)),
        image_ids=ids,
        sizes=sizes,
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes,
        labels=np.concatenate(labels),
        crowd=np.zeros(len(boxes), dtype=bool),
        areas=boxes[:, 2] * boxes[:, 3],
        annotation_ids=np.arange(1, len(boxes) + 1, dtype=np.int64),
        pictures=ArrayPictures(
            flat=np.concatenate([picture.pixels.ravel() for picture in pictures]),
            offsets=np.concatenate([[0], ends[:-1]]).astype(np.int64),
            sizes=sizes,
            numbers=ids,
        ),
    )


def shapes(train: int = TRAIN_IMAGES, val: int = VAL_IMAGES) -> tuple[Table, Table]:
    """The training and the validation table; smaller numbers give the first images of each."""
    return (
        table("train", range(1, train + 1)),
        table("val", range(FIRST_VAL_ID, FIRST_VAL_ID + val)),
    )
