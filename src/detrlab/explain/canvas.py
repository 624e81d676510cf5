"""The one figure helper of ``plots``: panels that show the image and take boxes as fractions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detrlab.explain.inspection import Inspection
from detrlab.palette import SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

PANEL = 3.2
"""Width of one panel in inches."""
BRIGHTNESS = 0.4
"""Mean of a dimmed image, so that everything drawn on it stands out."""
DASHED = (0, (2, 2))

Box = Sequence[float]
"""Cxcywh, fractions of the image."""


class Panel:
    """The image on matplotlib axes.

    Args:
        axes: without content.
        inspection: of the image.
        picture: shown in its colours; without it the image of the inspection, dimmed.
    """

    def __init__(
        self, axes: Axes, inspection: Inspection, picture: Image.Image | None = None
    ) -> None:
        self.axes = axes
        self.height, self.width = inspection.size
        self._show(_dimmed(inspection) if picture is None else np.asarray(picture))
        axes.set(xlim=(0, self.width), ylim=(self.height, 0), facecolor="#222")
        # Ticks would take half of the time to draw a figure.
        axes.xaxis.set_visible(False)
        axes.yaxis.set_visible(False)

    def _show(self, pixels: NDArray[Any]) -> None:
        extent = (0, self.width, self.height, 0)
        self.axes.imshow(pixels, extent=extent, interpolation="nearest")

    def corners(self, box: Box) -> tuple[float, float, float, float]:
        """Left, top, width and height in pixels of the image."""
        x, y, w, h = box
        return (
            (x - w / 2) * self.width,
            (y - h / 2) * self.height,
            w * self.width,
            h * self.height,
        )

    def box(self, box: Box, colour: Any, *, dashed: bool = False, width: float = 1.6) -> None:
        """An outline."""
        from matplotlib.patches import Rectangle

        left, top, w, h = self.corners(box)
        self.axes.add_patch(
            Rectangle(
                (left, top), w, h, fill=False, edgecolor=colour, linewidth=width,
                linestyle=DASHED if dashed else "-",
            )
        )  # fmt: skip

    def heat(self, values: NDArray[Any]) -> None:
        """Cells (rows, columns) over the whole image, without smoothing: opaque where high."""
        from matplotlib import colormaps

        strength = values / values.max()
        rgba = colormaps[SEQUENTIAL](strength)
        rgba[..., 3] = 0.85 * np.sqrt(strength)
        self._show(rgba)

    def cross(self, point: Sequence[float]) -> None:
        """A white cross at a point given in fractions."""
        x, y = point[0] * self.width, point[1] * self.height
        self.axes.plot(x, y, "+", color="black", markersize=9, markeredgewidth=2.6)
        self.axes.plot(x, y, "+", color="white", markersize=8, markeredgewidth=1.2)

    def label(self, box: Box, text: str, colour: Any) -> None:
        """A text above a box."""
        left, top, _, _ = self.corners(box)
        fits = top > 0.05 * self.height
        self.axes.text(
            max(left, 0), max(top, 0), text, fontsize=7, color="black", clip_on=True,
            va="bottom" if fits else "top",
            parse_math=False, bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip

    def caption(self, text: str) -> None:
        """A text at the bottom left."""
        self.axes.text(
            0.02, 0.02, text, fontsize=7, color="white", transform=self.axes.transAxes,
            parse_math=False, clip_on=True,
            bbox={"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1},
        )  # fmt: skip

    def title(self, text: str) -> None:
        """A text above the panel."""
        self.axes.set_title(text, fontsize=9, parse_math=False)

    def side(self, text: str) -> None:
        """A text left of a row of panels."""
        self.axes.text(
            -0.03, 0.5, text, fontsize=8, rotation=90, ha="right", va="center",
            multialignment="center", transform=self.axes.transAxes, parse_math=False,
        )  # fmt: skip

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
    inspection: Inspection,
    columns: int,
    rows: int = 1,
    *,
    panel: float = PANEL,
    legend: bool = False,
) -> tuple[Figure, list[Panel]]:
    """A figure of panels, row by row.

    Args:
        inspection: of the image.
        columns: of panels.
        rows: of panels.
        panel: width of each in inches.
        legend: leave room for one.
    """
    figure, axes = blank(
        columns,
        rows,
        columns * panel + (0.9 if legend else 0.2),
        rows * panel * inspection.size[0] / inspection.size[1] + (0.8 if legend else 0.4),
    )
    return figure, [Panel(each, inspection) for each in axes]


def blank(columns: int, rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of empty axes, row by row; width and height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def set_title(figure: Figure, text: str, inspection: Inspection | None = None) -> None:
    """A title over the whole figure, after the detector's name, in lines that fit its width."""
    if inspection is not None:
        text = f"{inspection.name or 'the detector'}: {text}"
    letters = int(13 * figure.get_figwidth())  # at this font size
    figure.suptitle(textwrap.fill(text, letters), fontsize=10, parse_math=False)


def ramp(count: int) -> list[Any]:
    """Colours from the first layer or level (dark) to the last (bright)."""
    from matplotlib import colormaps

    return [colormaps["viridis"](x) for x in np.linspace(0.15, 1.0, count)]


def _dimmed(inspection: Inspection) -> NDArray[Any]:
    """The image in dark grey; plain grey where it was not kept."""
    if inspection.picture is None:
        return np.full((2, 2, 3), 80, dtype=np.uint8)
    grey = np.asarray(inspection.picture.convert("L"), dtype=np.float32) / 255
    low, high = np.percentile(grey, [1, 99])
    grey = ((grey - low) / max(high - low, 0.05)).clip(0, 1)
    # The same darkness for night and for snow.
    grey *= min(0.7, BRIGHTNESS / max(float(grey.mean()), 0.05))
    return (255 * grey[..., None].repeat(3, axis=2)).astype(np.uint8)
