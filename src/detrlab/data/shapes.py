"""The built-in generated data sets: figures among clutter.

``docs/shapes.md`` is the specification. Everything is integer arithmetic on the words of a
counter-based generator, rasterised here, so that every machine and every version of every
library draws the same pixels; tests pin their hashes. Whatever changes a pixel or a box is a
new set with a new name, never an edit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detrlab.data.pictures import ArrayPictures
from detrlab.data.table import Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST_VAL_ID = 100_001
"""Training ids count from 1, validation ids from here."""


class Style(NamedTuple):
    """What distinguishes one generated set from another.

    Attributes:
        name: of the set.
        classes: the figures that are objects, by class index.
        train: number of training images.
        val: number of validation images.
        stream: key of the set's random numbers.
        sizes: (height, width) of the images, all equally likely.
        clutter: pieces of clutter are fewer than this.
        objects: 1 plus two numbers below these are tried in each image that shows any.
        sides: (bound, least, spread): the first entry whose bound exceeds a number below 20
            gives an object ``least`` pixels and a number below ``spread`` more.
        bars: thin bars in front of everything are fewer than this.
        own_colour: one object in so many is sure to have its class's colour.
    """

    name: str
    classes: tuple[str, ...]
    train: int
    val: int
    stream: int
    sizes: tuple[tuple[int, int], ...]
    clutter: int
    objects: tuple[int, int]
    sides: tuple[tuple[int, int, int], ...]
    bars: int
    own_colour: int


SHAPES = Style(
    name="shapes",
    classes=("disc", "ring", "square", "triangle", "cross", "star"),
    train=600,
    val=200,
    stream=0x736861706573,  # "shapes"
    sizes=((160, 192), (160, 192), (192, 160), (144, 176), (176, 208)),
    clutter=7,
    objects=(4, 4),
    sides=((7, 12, 20), (14, 32, 48), (20, 80, 61)),
    bars=3,
    own_colour=2,
)
SHAPES_EASY = SHAPES._replace(
    name="shapes-easy",
    train=640,
    stream=0x65617379,  # "easy"
    sizes=((128, 128),),
    clutter=3,
    objects=(2, 1),
    sides=((4, 20, 12), (9, 48, 24), (20, 72, 32)),
    bars=1,
    own_colour=1,
)
"""Smaller images with at most two, mostly large, objects in their class's colour: the demo's."""
FIGURES = SHAPES_EASY._replace(
    name="figures",
    classes=("oval", "pentagon", "half", "ell", "tee", "kite", "frame", "moon"),
    train=12_000,
    val=400,
    stream=0x66696775726573,  # "figures"
    own_colour=2,
)
"""As ``shapes-easy``, with other figures: the packaged weights ``figures`` were trained on it."""

STYLES = {style.name: style for style in (SHAPES, SHAPES_EASY)}
"""The built-in sets, by name."""

_COSINES = (1024, 1004, 946, 851, 724, 569, 392, 200)  # 1024 cos(2 pi k / 32), k = 0..7
_PALETTE = np.array(
    [
        (214, 60, 52),
        (60, 168, 76),
        (56, 92, 212),
        (232, 196, 48),
        (164, 72, 188),
        (48, 188, 200),
        (236, 132, 44),
        (236, 236, 232),
        (28, 30, 36),
    ],
    dtype=np.int16,
)
# Outward normals of a regular pentagon's sides, times 1024.
_PENTAGON = ((0, 1024), (974, 316), (602, -828), (-602, -828), (-974, 316))


class Stamp(NamedTuple):
    """A figure, drawn once and then put wherever it fits.

    Attributes:
        coverage: (h, w) uint8, how many of 4 points of each pixel the figure covers.
        left: column of the window's first pixel, counted from the figure's middle.
        top: row of the window's first pixel, counted from the figure's middle.
        dark: (h, w) bool, where stripes would darken it.
    """

    coverage: NDArray[Any]
    left: int
    top: int
    dark: NDArray[Any]


class Picture(NamedTuple):
    """One generated image.

    Attributes:
        pixels: (height, width, 3) uint8.
        boxes: (N, 4) int64, xywh, the extent of what is visible of each object.
        labels: (N,) int64 class indices.
    """

    pixels: NDArray[Any]
    boxes: NDArray[Any]
    labels: NDArray[Any]


class _Draws:
    """The words of one image's stream, turned into small integers without floats."""

    def __init__(self, number: int, stream: int = SHAPES.stream) -> None:
        self._bits = np.random.Philox(key=np.array([number, stream], dtype=np.uint64))

    def below(self, bound: int) -> int:
        """The next integer in [0, bound)."""
        return (int(self._bits.random_raw()) >> 32) * bound >> 32

    def noise(self, count: int) -> NDArray[np.int16]:
        """``count`` bytes, as int16."""
        words = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].astype(np.int16)


def draw(number: int, style: Style = SHAPES) -> Picture:
    """The image with this id; see ``docs/shapes.md``."""
    draws = _Draws(number, style.stream)
    height, width = style.sizes[draws.below(len(style.sizes))]
    base = np.array([64 + draws.below(128) for _ in range(3)], dtype=np.int16)
    canvas = _background(draws, height, width, base)
    for _ in range(draws.below(style.clutter)):
        _clutter(draws, canvas, base)

    owner = np.full((height, width), -1, dtype=np.int16)
    labels: list[int] = []
    full: list[int] = []
    first, second = style.objects
    for _ in range(0 if draws.below(16) == 0 else 1 + draws.below(first) + draws.below(second)):
        _object(draws, style, canvas, base, owner, labels, full)

    for _ in range(draws.below(style.bars)):
        _bar(draws, canvas, base, thickest=2)
    canvas += (draws.noise(canvas.size).reshape(canvas.shape) & 15) - 7
    boxes = np.array([_extent(owner == k) for k in range(len(labels))], dtype=np.int64)
    return Picture(
        pixels=canvas.clip(0, 255).astype(np.uint8),
        boxes=boxes.reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
    )


def _background(draws: _Draws, height: int, width: int, base: NDArray[Any]) -> NDArray[Any]:
    """Soft colour clouds: random colours every 32 pixels, blended linearly in between."""
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
    """One thing that is no object: a bar, a flat ellipse or a dot."""
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
    """Put a figure anywhere, in any colour that shows."""
    stamp = _stamp(draws, kind, radius)
    x, y = draws.below(canvas.shape[1]), draws.below(canvas.shape[0])
    _paint(canvas, stamp, x, y, _colour(draws, base), striped=False)


def _colour(
    draws: _Draws, base: NDArray[Any], home: int | None = None, own_colour: int = 1
) -> NDArray[Any]:
    """A colour that stands out from the background; of one object in ``own_colour`` its class's."""
    choice = draws.below(len(_PALETTE))
    if home is not None and draws.below(own_colour) == 0:
        choice = home
    shift = np.array([draws.below(41) - 20 for _ in range(3)], dtype=np.int16)
    for step in range(len(_PALETTE)):
        colour = (_PALETTE[(choice + step) % len(_PALETTE)] + shift).clip(0, 255)
        if np.abs(colour - base).sum() >= 150:
            break
    return colour


def _object(
    draws: _Draws,
    style: Style,
    canvas: NDArray[Any],
    base: NDArray[Any],
    owner: NDArray[Any],
    labels: list[int],
    full: list[int],
) -> None:
    """Draw one object where it hides nothing entirely, or give up after ten attempts.

    Args:
        draws: the image's stream.
        style: of the set.
        canvas: the image so far.
        base: the background's colour.
        owner: (H, W), the object whose body lies on top at each pixel, or -1.
        labels: class indices so far; the object's is added.
        full: pixels of each object if nothing hid it; the object's is added.
    """
    label = draws.below(len(style.classes))
    colour = _colour(draws, base, label, style.own_colour)
    striped = draws.below(4) == 0
    bucket = draws.below(20)
    least, spread = next(row[1:] for row in style.sides if bucket < row[0])
    stamp = _stamp(draws, style.classes[label], 2 * (least + draws.below(spread)))
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
    """Whether 2/5 of every other object stay visible under this mask."""
    if not full:
        return True
    hidden = np.bincount(owner[window][mask] + 1, minlength=len(full) + 1)[1:]
    return all(
        5 * (np.count_nonzero(owner == k) - hidden[k]) >= 2 * full[k]
        for k in np.flatnonzero(hidden)
    )


def _stamp(draws: _Draws, kind: str, radius: int) -> Stamp:
    """Rasterise a figure, turned and shifted by quarter pixels at random.

    Lengths are in quarter pixels; the 4 points of a pixel lie at its 1/4 and 3/4.
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
    """The part of a stamp that lies inside the image when its middle is at (x, y), and where."""
    height, width = stamp.coverage.shape
    top, left = y + stamp.top, x + stamp.left
    rows = slice(max(top, 0), min(top + height, shape[0]))
    columns = slice(max(left, 0), min(left + width, shape[1]))
    part = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    return part, (rows, columns)


def _turn(dx: NDArray[Any], dy: NDArray[Any], angle: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Coordinates along axes that are turned by ``angle`` 32nds of a turn."""
    cosine, sine = _cosine(angle), _cosine(angle - 8)
    return dx * cosine + dy * sine >> 10, dy * cosine - dx * sine >> 10


def _cosine(step: int) -> int:
    """1024 times the cosine of ``step`` 32nds of a turn."""
    quarter, rest = divmod(step % 32, 8)
    forward = _COSINES[rest]
    backward = _COSINES[8 - rest] if rest else 0
    return (forward, -backward, -forward, backward)[quarter]


def _inside(kind: str, r: int, u: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
    """Which points, in the figure's own axes, a figure of radius r covers."""
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
    if kind == "oval":
        return 25 * u * u + 81 * v * v <= 25 * r * r
    if kind == "pentagon":
        sides = sum((nx * u + ny * v <= 828 * r).view(np.uint8) for nx, ny in _PENTAGON)
        return sides == 5
    if kind == "half":
        return (u * u + v * v <= r * r) & (4 * v <= r)
    if kind == "moon":
        return (u * u + v * v <= r * r) & (4 * u * u + (2 * v - r) ** 2 > 3 * r * r)
    if kind == "kite":
        return (2 * np.abs(u) - v <= r) & (4 * np.abs(u) + 3 * v <= 3 * r)
    if kind == "ell":
        arm = (20 * v >= 4 * r) | (20 * u <= -4 * r)
        return (10 * np.maximum(np.abs(u), np.abs(v)) <= 7 * r) & arm
    if kind == "tee":
        arm = (20 * v <= -4 * r) | (4 * np.abs(u) <= r)
        return (10 * np.maximum(np.abs(u), np.abs(v)) <= 7 * r) & arm
    if kind == "frame":
        far = np.maximum(np.abs(u), np.abs(v))
        return (10 * far <= 7 * r) & (10 * far >= 4 * r)
    assert kind.startswith("bar")
    return (np.abs(u) <= r) & (np.abs(v) <= 2 * int(kind[3:]))


def _paint(
    canvas: NDArray[Any], stamp: Stamp, x: int, y: int, colour: NDArray[Any], striped: bool
) -> None:
    """Blend a figure into the canvas by its coverage."""
    part, window = _window(stamp, x, y, canvas.shape)
    share = stamp.coverage[part].astype(np.int16)[..., None]
    fill = colour
    if striped:
        fill = np.where(stamp.dark[part][..., None], colour * 5 // 8, colour)
    blend = canvas[window] * (4 - share)
    blend += fill * share + 2
    canvas[window] = blend >> 2


def _extent(mask: NDArray[Any]) -> tuple[int, int, int, int]:
    """The extent of a mask, xywh."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def table(name: str, numbers: range, style: Style = SHAPES) -> Table:
    """The images with these ids as a table."""
    pictures = [draw(number, style) for number in numbers]
    counts = [len(picture.labels) for picture in pictures]
    boxes = np.concatenate([np.zeros((0, 4)), *(picture.boxes for picture in pictures)])
    labels = [picture.labels for picture in pictures]
    sizes = np.array([picture.pixels.shape[:2] for picture in pictures], dtype=np.int32)
    ends = np.cumsum(np.prod(sizes, axis=1, dtype=np.int64) * 3)
    ids = np.array(numbers, dtype=np.int64)
    return Table(
        name=name,
        classes=style.classes,
        category_ids=tuple(range(1, len(style.classes) + 1)),
        image_ids=ids,
        sizes=sizes,
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes.astype(np.float64),
        labels=np.concatenate([np.zeros(0, np.int64), *labels]),
        crowd=np.zeros(len(boxes), dtype=bool),
        areas=(boxes[:, 2] * boxes[:, 3]).astype(np.float64),
        annotation_ids=np.arange(1, len(boxes) + 1, dtype=np.int64),
        pictures=ArrayPictures(
            flat=np.concatenate([picture.pixels.ravel() for picture in pictures]),
            offsets=np.concatenate([[0], ends[:-1]]).astype(np.int64),
            sizes=sizes,
            numbers=ids,
        ),
    )


def shapes(
    train: int | None = None, val: int | None = None, style: Style = SHAPES
) -> tuple[Table, Table]:
    """The training and the validation table; smaller numbers give the first images of each."""
    last = FIRST_VAL_ID + (style.val if val is None else val)
    return (
        table("train", range(1, 1 + (style.train if train is None else train)), style),
        table("val", range(FIRST_VAL_ID, last), style),
    )
