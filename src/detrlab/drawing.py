"""Boxes with captions, drawn on copies of pictures, legible at any image size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from detrlab.palette import Colour, colour_of, text_colour_on

if TYPE_CHECKING:
    from detrlab.detections import Detections

# Pillow's own font has Latin letters only; class names are often Chinese, Japanese or Korean.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
)

_MOST_COVERED = 0.25
"""The share of another box that a caption may cover."""


class _Style(NamedTuple):
    """Sizes that follow the picture, in pixels."""

    line: int
    margin: int
    font_size: int


Rectangle = tuple[float, float, float, float]


def draw_detections(image: Image.Image, detections: Detections) -> Image.Image:
    """A copy of the picture with every detection's box, class name and score.

    Args:
        image: of the size that ``detections.boxes`` refer to.
        detections: those to draw; take ``detections.above(threshold)`` first.
    """
    rows = zip(detections.names, detections.scores.tolist(), strict=True)
    return draw_boxes(
        image,
        detections.boxes.tolist(),
        [f"{name} {score:.2f}" for name, score in rows],
        [colour_of(label) for label in detections.labels.tolist()],
    )


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    captions: Sequence[str],
    colours: Sequence[Colour],
) -> Image.Image:
    """A copy of the picture with boxes and captions; the first ones lie on top.

    A caption stands above its box, below, beside or inside it, where it covers neither an
    earlier caption nor much of another box; where there is no such place it is left out.

    Args:
        image: any mode; the copy is RGB.
        boxes: xyxy in pixels; what reaches over the edge is cut, what lies outside left out.
        captions: one for each box, "" for none.
        colours: one for each box.
    """
    canvas = image.convert("RGB")
    if canvas is image:
        canvas = image.copy()
    draw = ImageDraw.Draw(canvas)
    rows = [
        (_clip(box, canvas.size), caption, colour)
        for box, caption, colour in zip(boxes, captions, colours, strict=True)
    ]
    style = _style(canvas.size, [box for box, _, _ in rows if box is not None])
    for box, _, colour in reversed(rows):
        if box is not None:
            _outline(draw, box, colour, style)
    visible = [box for box, _, _ in rows if box is not None]
    taken: list[Rectangle] = []
    for box, caption, colour in rows:
        if box is not None and caption:
            others = [other for other in visible if other is not box]
            _caption(draw, box, caption, colour, style, canvas.size, taken, others)
    return canvas


def _style(size: tuple[int, int], boxes: Sequence[Rectangle]) -> _Style:
    """Sizes for a picture; half of them where its objects are small, as in one seen in tiles."""
    sides = sorted(max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes)
    small = bool(sides) and sides[len(sides) // 2] < max(size) / 12
    longest = max(size) / (1 + small)
    return _Style(
        line=max(1, round(longest / 320)),
        margin=max(2, round(longest / 400)),
        font_size=min(48, max(10, round(longest / 45))),
    )


def _clip(box: Sequence[float], size: tuple[int, int]) -> Rectangle | None:
    """The part of the box inside the picture; None when there is none."""
    width, height = size
    left, right = sorted((float(box[0]), float(box[2])))
    top, bottom = sorted((float(box[1]), float(box[3])))
    if right < 0 or bottom < 0 or left > width - 1 or top > height - 1:
        return None
    return max(left, 0.0), max(top, 0.0), min(right, width - 1.0), min(bottom, height - 1.0)


def _outline(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, style: _Style) -> None:
    # The thin rim in the opposite tone keeps the line visible on any background.
    rim = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
    draw.rectangle(rim, outline=text_colour_on(colour), width=style.line + 2)
    draw.rectangle(box, outline=colour, width=style.line)


def _caption(
    draw: ImageDraw.ImageDraw,
    box: Rectangle,
    caption: str,
    colour: Colour,
    style: _Style,
    size: tuple[int, int],
    taken: list[Rectangle],
    others: list[Rectangle],
) -> None:
    font = _font(caption, style.font_size)
    left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
    width, height = right - left + 2 * style.margin, bottom - top + 2 * style.margin
    for x, y in _places(box, width, height, size):
        area = (round(x), round(y), round(x) + width, round(y) + height)
        free = not any(_covered(other, area) > 0 for other in taken)
        if free and not any(_covered(other, area) > _MOST_COVERED for other in others):
            taken.append(area)
            # Pillow counts the last pixel in.
            draw.rectangle((area[0], area[1], area[2] - 1, area[3] - 1), fill=colour)
            origin = (area[0] + style.margin - left, area[1] + style.margin - top)
            draw.text(origin, caption, fill=text_colour_on(colour), font=font)
            return


def _places(
    box: Rectangle, width: float, height: float, size: tuple[int, int]
) -> list[tuple[float, float]]:
    """Top left corners a caption of this size may have, the best first; all inside the picture."""
    x0, y0, x1, y1 = box
    room_x, room_y = size[0] - 1 - width, size[1] - 1 - height
    if room_x < 0 or room_y < 0:
        return [(0.0, 0.0)]
    beside_x = [(x1, y0), (x0 - width, y0)]
    places = [(x0, y0 - height), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1)]
    slid = [(min(max(x, 0.0), room_x), y) for x, y in [*places, (x0, y0)] if 0 <= y <= room_y]
    beside = [(x, min(y, room_y)) for x, y in beside_x if 0 <= x <= room_x]
    # Inside its own box comes last, because it hides the object.
    return [*slid[:-1], *beside, *slid[-1:]] or [(min(max(x0, 0.0), room_x), min(y0, room_y))]


def _covered(box: Rectangle, by: Rectangle) -> float:
    """The share of ``box`` that lies below ``by``."""
    width = min(box[2], by[2]) - max(box[0], by[0])
    height = min(box[3], by[3]) - max(box[1], by[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / max(1.0, (box[2] - box[0]) * (box[3] - box[1]))


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not text.isascii():
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)
