"""The built-in generated data sets: figures among clutter.

``docs/data.md`` is their specification. Everything is integer arithmetic on the words of a
counter-based random generator, so that all machines and library versions draw the same pixels;
tests pin their hashes. A change of any pixel or box needs a new data set with a new name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrlab.data.pictures import ArrayPictures
from detrlab.data.table import Table

Array = NDArray[Any]

FIRST_VAL_ID = 100_001
"""Training ids count from 1, validation ids from here."""


class Style(NamedTuple):
    """What distinguishes one generated set from another; the numbers are bounds of draws.

    ``sizes`` are (height, width). ``sides`` are (bound, least, spread): the first entry whose
    bound exceeds a number below 20 gives an object ``least`` pixels and a number below ``spread``
    more. One object in ``own_colour`` is sure to have its class's colour.
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
"""The demo's: smaller images with at most two, mostly large, objects in their class's colour."""
FIGURES = SHAPES_EASY._replace(
    name="figures",
    classes=("oval", "pentagon", "half", "ell", "tee", "kite", "frame", "moon"),
    train=12_000,
    val=400,
    stream=0x66696775726573,  # "figures"
    own_colour=2,
)
"""As ``shapes-easy``, with other figures: the demo's starting weights were trained on it."""

STYLES = {style.name: style for style in (SHAPES, SHAPES_EASY)}
"""The built-in sets, by name."""

_QUARTER = (1024, 1004, 946, 851, 724, 569, 392, 200)  # 1024 cos(2 pi k / 32), k = 0..7
_HALF = (*_QUARTER, 0, *(-value for value in _QUARTER[:0:-1]))
_COSINES = (*_HALF, *(-value for value in _HALF))
_PALETTE = np.array(
    [
        (214, 60, 52), (60, 168, 76), (56, 92, 212), (232, 196, 48), (164, 72, 188),
        (48, 188, 200), (236, 132, 44), (236, 236, 232), (28, 30, 36),
    ],
    dtype=np.int16,
)  # fmt: skip
# Outward normals of a regular pentagon's sides, times 1024.
_PENTAGON = ((0, 1024), (974, 316), (602, -828), (-602, -828), (-974, 316))


class Picture(NamedTuple):
    """One generated image: (H, W, 3) uint8 pixels, (N, 4) int64 xywh boxes, (N,) labels."""

    pixels: Array
    boxes: Array
    labels: Array


def draw(number: int, style: Style = SHAPES) -> Picture:
    """The image with this id."""
    return _Drawing(number, style).finished()


class _Draws:
    """Small integers from the random stream of one image, computed without floats."""

    def __init__(self, number: int, stream: int = SHAPES.stream) -> None:
        self._bits = np.random.Philox(key=np.array([number, stream], dtype=np.uint64))

    def below(self, bound: int) -> int:
        """The next integer in [0, bound)."""
        return (int(self._bits.random_raw()) >> 32) * bound >> 32

    def noise(self, count: int) -> NDArray[np.int16]:
        """``count`` bytes, as int16."""
        words = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].astype(np.int16)


class _Stamp(NamedTuple):
    """A rasterized figure: how many of 4 points of each pixel it covers, and where stripes lie."""

    coverage: Array
    dark: Array


class _Drawing:
    """One image while it is drawn.

    ``owner`` is (H, W), the topmost object at each pixel or -1; ``full`` has the pixels of each
    object if nothing covered it.
    """

    def __init__(self, number: int, style: Style) -> None:
        self.style = style
        self.draws = _Draws(number, style.stream)
        self.below = self.draws.below
        self.height, self.width = style.sizes[self.below(len(style.sizes))]
        self.base = np.array([64 + self.below(128) for _ in range(3)], dtype=np.int16)
        self.canvas: Array = self.background()
        self.owner = np.full((self.height, self.width), -1, dtype=np.int16)
        self.labels: list[int] = []
        self.full: list[int] = []

    def finished(self) -> Picture:
        for _ in range(self.below(self.style.clutter)):
            self.clutter()
        first, second = self.style.objects
        for _ in range(0 if self.below(16) == 0 else 1 + self.below(first) + self.below(second)):
            self.object()
        for _ in range(self.below(self.style.bars)):
            self.bar(thickest=2)
        self.canvas += (self.draws.noise(self.canvas.size).reshape(self.canvas.shape) & 15) - 7
        boxes = [_extent(self.owner == k) for k in range(len(self.labels))]
        return Picture(
            pixels=self.canvas.clip(0, 255).astype(np.uint8),
            boxes=np.array(boxes, dtype=np.int64).reshape(-1, 4),
            labels=np.array(self.labels, dtype=np.int64),
        )

    def background(self) -> Array:
        """Random colours every 32 pixels, interpolated bilinearly."""
        rows, columns = -(-self.height // 32) + 1, -(-self.width // 32) + 1
        # At most 31, so that the sum, times 1024, still fits 16 bits.
        knots = self.draws.noise(rows * columns * 3).reshape(rows, columns, 3) % 63 - 31
        y, x = (np.arange(side, dtype=np.int16) for side in (self.height, self.width))
        fy, fx = (y % 32)[:, None, None], (x % 32)[None, :, None]
        lines = knots[y // 32] * (32 - fy) + knots[y // 32 + 1] * fy
        clouds: Array = lines[:, x // 32] * (32 - fx) + lines[:, x // 32 + 1] * fx
        background: Array = (clouds >> 10) + self.base
        return background

    def clutter(self) -> None:
        """One thing that is no object: a bar, a flat ellipse or a dot."""
        kind = self.below(3)
        if kind == 0:
            self.bar(thickest=5)
        elif kind == 1:
            self.scatter("ellipse", 4 * (8 + self.below(24)))
        else:
            self.scatter("disc", 4 * (1 + self.below(3)))

    def bar(self, thickest: int) -> None:
        thickness = 1 + self.below(thickest)
        self.scatter(f"bar{thickness}", 4 * (10 + self.below(40)))

    def scatter(self, kind: str, radius: int) -> None:
        """Draw a figure anywhere, in any colour that stands out."""
        stamp = _stamp(self.draws, kind, radius)
        x, y = self.below(self.width), self.below(self.height)
        self.paint(stamp, x, y, self.colour())

    def colour(self, home: int | None = None) -> Array:
        """A colour that stands out from the background, for objects often their class's."""
        choice = self.below(len(_PALETTE))
        if home is not None and self.below(self.style.own_colour) == 0:
            choice = home
        shift = np.array([self.below(41) - 20 for _ in range(3)], dtype=np.int16)
        for step in range(len(_PALETTE)):
            colour = (_PALETTE[(choice + step) % len(_PALETTE)] + shift).clip(0, 255)
            if np.abs(colour - self.base).sum() >= 150:
                break
        return colour

    def object(self) -> None:
        """Draw one object where all objects stay visible; give up after ten attempts."""
        label = self.below(len(self.style.classes))
        colour = self.colour(label)
        striped = self.below(4) == 0
        bucket = self.below(20)
        least, spread = next(row[1:] for row in self.style.sides if bucket < row[0])
        stamp = _stamp(self.draws, self.style.classes[label], 2 * (least + self.below(spread)))
        body = np.count_nonzero(stamp.coverage >= 2)
        for _ in range(10):
            x, y = self.below(self.width), self.below(self.height)
            part, window = self.window(stamp, x, y)
            mask = stamp.coverage[part] >= 2
            covered = self.owner[window][mask]
            if 2 * np.count_nonzero(mask) >= body and self.shows_others(covered):
                self.owner[window][mask] = len(self.labels)
                self.full.append(int(np.count_nonzero(mask)))
                self.labels.append(label)
                self.paint(stamp, x, y, colour, striped)
                break

    def shows_others(self, covered: Array) -> bool:
        """Whether at least 2/5 of every object stay visible if these pixels are covered."""
        hidden = np.bincount(covered + 1, minlength=len(self.full) + 1)[1:]
        return all(
            5 * (np.count_nonzero(self.owner == k) - hidden[k]) >= 2 * self.full[k]
            for k in np.flatnonzero(hidden)
        )

    def window(self, stamp: _Stamp, x: int, y: int) -> tuple[Any, Any]:
        """The part of a stamp inside the image if its center is at (x, y), and its place there."""
        part, window, side = [], [], len(stamp.dark)
        for low, bound in ((y - side // 2, self.height), (x - side // 2, self.width)):
            first, last = max(low, 0), min(low + side, bound)
            part.append(slice(first - low, last - low))
            window.append(slice(first, last))
        return tuple(part), tuple(window)

    def paint(self, stamp: _Stamp, x: int, y: int, colour: Array, striped: bool = False) -> None:
        """Blend a figure into the image by its coverage."""
        part, window = self.window(stamp, x, y)
        share = stamp.coverage[part].astype(np.int16)[..., None]
        fill = np.where(stamp.dark[part][..., None] & striped, colour * 5 // 8, colour)
        blend = self.canvas[window] * (4 - share) + fill * share + 2
        self.canvas[window] = blend >> 2


def _stamp(draws: _Draws, kind: str, radius: int) -> _Stamp:
    """Rasterize a figure, rotated and shifted by quarter pixels at random.

    Lengths are in quarter pixels; the 4 points of a pixel are at its 1/4 and 3/4.
    """
    angle, shift_x, shift_y = draws.below(32), draws.below(4), draws.below(4)
    reach = radius // 4 + 2
    pixels = np.arange(-reach, reach, dtype=np.int32)
    points = (4 * pixels[:, None] + np.array([1, 3], dtype=np.int32)).ravel()
    dx, dy = points[None, :] - shift_x, points[:, None] - shift_y
    cosine, sine = _COSINES[angle], _COSINES[angle - 8]
    u, v = dx * cosine + dy * sine >> 10, dy * cosine - dx * sine >> 10
    inside = _inside(kind, radius, u, v).view(np.uint8)
    coverage = inside[::2, ::2] + inside[::2, 1::2] + inside[1::2, ::2] + inside[1::2, 1::2]
    return _Stamp(coverage, (u[::2, ::2] // max(8, radius // 3)) & 1 == 1)


def _inside(kind: str, r: int, u: Array, v: Array) -> Array:
    """Which points, in the figure's own coordinates, a figure of radius r covers."""
    if kind.startswith("bar"):
        return (np.abs(u) <= r) & (np.abs(v) <= 2 * int(kind[3:]))
    if kind in ("star", "pentagon"):
        reach, sides = (317, 4) if kind == "star" else (828, 5)
        return sum((nx * u + ny * v <= reach * r).view(np.uint8) for nx, ny in _PENTAGON) >= sides
    across, squares = np.abs(u), u * u + v * v
    near, far = np.minimum(across, np.abs(v)), np.maximum(across, np.abs(v))
    block = 10 * far <= 7 * r
    figures = {
        "disc": lambda: squares <= r * r,
        "ring": lambda: (100 * squares <= 100 * r * r) & (100 * squares >= 30 * r * r),
        "square": lambda: far <= r * 181 >> 8,
        "triangle": lambda: (2 * v <= r) & (1774 * across - 1024 * v <= 1024 * r),
        "cross": lambda: (10 * near <= 3 * r) & (20 * far <= 19 * r),
        "ellipse": lambda: u * u + 9 * v * v <= r * r,
        "oval": lambda: 25 * u * u + 81 * v * v <= 25 * r * r,
        "half": lambda: (squares <= r * r) & (4 * v <= r),
        "moon": lambda: (squares <= r * r) & (4 * u * u + (2 * v - r) ** 2 > 3 * r * r),
        "kite": lambda: (2 * across - v <= r) & (4 * across + 3 * v <= 3 * r),
        "ell": lambda: block & ((20 * v >= 4 * r) | (20 * u <= -4 * r)),
        "tee": lambda: block & ((20 * v <= -4 * r) | (4 * across <= r)),
        "frame": lambda: block & (10 * far >= 4 * r),
    }
    inside: Array = figures[kind]()
    return inside


def _extent(mask: Array) -> tuple[int, int, int, int]:
    """The extent of a mask, xywh."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def table(name: str, numbers: range, style: Style = SHAPES) -> Table:
    """A table of the images with these ids."""
    pictures = [draw(number, style) for number in numbers]
    counts = [len(picture.labels) for picture in pictures]
    boxes = np.concatenate([np.zeros((0, 4)), *(picture.boxes for picture in pictures)])
    labels = [np.zeros(0, np.int64), *(picture.labels for picture in pictures)]
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


def shapes(
    train: int | None = None, val: int | None = None, style: Style = SHAPES
) -> tuple[Table, Table]:
    """The training and the validation table; smaller numbers give the first images of each."""
    last = FIRST_VAL_ID + (style.val if val is None else val)
    return (
        table("train", range(1, 1 + (style.train if train is None else train)), style),
        table("val", range(FIRST_VAL_ID, last), style),
    )
