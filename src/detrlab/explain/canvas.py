"""Panels of the figures: axes that show the image and take boxes as fractions of it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detrlab.figures import new_figure
from detrlab.palette import SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

    from detrlab.explain.explanation import Explanation

PANEL = 3.2
"""Width of one panel in inches."""
BRIGHTNESS = 0.4
"""Mean of a dimmed image, so that everything drawn on it stands out."""

Box = Sequence[float]
"""Cxcywh, fractions of the image."""


class Panel:
    """The image on matplotlib axes.

    Args:
        axes: without content.
        explanation: of the image.
        picture: shown in its colours; without it the image of the explanation, dimmed.
    """

    def __init__(
        self, axes: Axes, explanation: Explanation, picture: Image.Image | None = None
    ) -> None:
        self.axes = axes
        self.height, self.width = explanation.size
        self._show(_dimmed(explanation.picture) if picture is None else np.asarray(picture))
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        # Ticks would take half of the time to draw a figure.
        axes.xaxis.set_visible(False)
        axes.yaxis.set_visible(False)

    def _show(self, pixels: NDArray[Any]) -> None:
        extent = (0, self.width, self.height, 0)
        self.axes.imshow(pixels, extent=extent, interpolation="nearest")

    def corners(self, box: Box) -> tuple[float, float, float, float]:
        """Left, top, width and height in pixels of the image."""
        x, y, w, h = np.array(box) * [self.width, self.height, self.width, self.height]
        return x - w / 2, y - h / 2, w, h

    def box(self, box: Box, colour: Any, *, dashed: bool = False, width: float = 1.6) -> None:
        """An outline."""
        from matplotlib.patches import Rectangle

        left, top, w, h = self.corners(box)
        line: dict[str, Any] = {
            "edgecolor": colour,
            "linewidth": width,
            "linestyle": (0, (2, 2)) if dashed else "-",
        }
        self.axes.add_patch(Rectangle((left, top), w, h, fill=False, **line))

    def heat(self, values: NDArray[Any]) -> None:
        """Cells (rows, columns) over the whole image, without smoothing: opaque where high."""
        from matplotlib import colormaps

        strength = values / max(values.max(), 1e-9)
        rgba = colormaps[SEQUENTIAL](strength)
        rgba[..., 3] = 0.85 * np.sqrt(strength)
        self._show(rgba)

    def cross(self, point: Sequence[float]) -> None:
        """A white cross at a point given in fractions."""
        x, y = point[0] * self.width, point[1] * self.height
        self.axes.plot(x, y, "+", color="black", markersize=9, markeredgewidth=2.6)
        self.axes.plot(x, y, "+", color="white", markersize=8, markeredgewidth=1.2)

    def label(self, box: Box, text: str, colour: Any) -> None:
        """A text above a box, or inside it at the upper edge of the image."""
        left, top, _, _ = self.corners(box)
        place = "bottom" if top > 0.05 * self.height else "top"
        behind: dict[str, Any] = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
        x, y = max(left, 0), max(top, 0)
        self.axes.text(x, y, text, fontsize=7, color="black", va=place, clip_on=True, bbox=behind)

    def caption(self, text: str) -> None:
        """A text at the bottom left."""
        behind: dict[str, Any] = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1}
        place: dict[str, Any] = {"transform": self.axes.transAxes, "clip_on": True, "bbox": behind}
        self.axes.text(0.02, 0.02, text, fontsize=7, color="white", **place)

    def title(self, text: str) -> None:
        """A text above the panel."""
        self.axes.set_title(text, fontsize=9)

    def side(self, text: str) -> None:
        """A text left of a row of panels."""
        place: dict[str, Any] = {"ha": "right", "va": "center", "transform": self.axes.transAxes}
        self.axes.text(-0.03, 0.5, text, fontsize=8, rotation=90, **place)

    def zoom(self, boxes: Sequence[Box], *, least: float, margin: float) -> None:
        """Show only the boxes and some of their surroundings, in the shape of the image.

        Args:
            boxes: at least one.
            least: share of the image's width and height that is shown at least.
            margin: how many times the size of the boxes is shown.
        """
        size = np.array([self.width, self.height])
        corners = np.array([self.corners(box) for box in boxes])
        low, high = corners[:, :2].min(0), (corners[:, :2] + corners[:, 2:]).max(0)
        half = size / 2 * min(max(*((high - low) / size * margin), least), 1.0)
        middle = ((low + high) / 2).clip(half, size - half)  # nothing beyond the image
        (left, top), (right, bottom) = middle - half, middle + half
        self.axes.set(xlim=(left, right), ylim=(bottom, top))


def grid(
    explanation: Explanation, columns: int, rows: int = 1, *, panel: float = PANEL
) -> tuple[Figure, list[Panel]]:
    """A figure of panels, row by row, each ``panel`` inches wide."""
    height = rows * panel * explanation.size[0] / explanation.size[1]
    figure, axes = new_figure(columns * panel + 0.6, height + 0.8, columns, rows)
    return figure, [Panel(each, explanation) for each in axes]


def set_title(figure: Figure, text: str, explanation: Explanation | None = None) -> None:
    """A title over the whole figure, after the detector's name, in lines that fit its width."""
    if explanation is not None:
        text = f"{explanation.name or 'the detector'}: {text}"
    letters = int(13 * figure.get_figwidth())  # at this font size
    figure.suptitle(textwrap.fill(text, letters), fontsize=10)


def _dimmed(picture: Image.Image | None) -> NDArray[Any]:
    """The image in dark grey, equally dark for night and snow; plain grey without an image."""
    if picture is None:
        return np.full((2, 2, 3), 80, dtype=np.uint8)
    grey = np.asarray(picture.convert("L"), dtype=np.float32) / 255
    low, high = np.percentile(grey, [1, 99])
    grey = ((grey - low) / max(high - low, 0.05)).clip(0, 1)
    grey *= min(0.7, BRIGHTNESS / max(float(grey.mean()), 0.05))
    return (255 * grey[..., None].repeat(3, axis=2)).astype(np.uint8)
