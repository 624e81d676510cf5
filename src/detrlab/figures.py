"""What all matplotlib figures share: style, fonts, size, legend and saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from detrlab.files import replacing
from detrlab.palette import FAINT, INK, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a class may be called "$x$"
    "text.color": INK,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    # No random ids, so that equal results give equal files.
    "svg.fonttype": "none",
    "svg.hashsalt": "detrlab",
}


def style(**more: Any) -> AbstractContextManager[None]:
    """Our matplotlib settings inside a ``with`` block, whatever the user's settings are.

    Args:
        **more: other settings, with ``__`` for each dot.
    """
    from matplotlib import rc_context, rcParamsDefault

    own: dict[Any, Any] = {name.replace("__", "."): value for name, value in more.items()}
    return rc_context({**rcParamsDefault, **_STYLE, "font.sans-serif": _fonts(), **own})


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """The same function, drawing in our style."""

    @wraps(draw)
    def draw_in_style(*args: P.args, **options: P.kwargs) -> R:
        with style():
            return draw(*args, **options)

    return draw_in_style


def new_figure(
    width: float,
    height: float,
    columns: int = 1,
    rows: int = 1,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot's global list, and its axes row by row; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, list(axes.flat)


def save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Write a figure atomically; the extension chooses the format.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with replacing(path) as temporary, style():
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi, metadata=metadata)
    return path


def colour_key(colours: dict[str, str], **place: Any) -> dict[str, Any]:
    """Arguments for a legend of colours."""
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colour, edgecolor=FAINT, label=name) for name, colour in colours.items()
    ]
    return {"handles": handles, "fontsize": 8, "ncols": 4} | place


def shades(count: int, low: float = 0.15, high: float = 1.0) -> list[Any]:
    """Colours from the first layer or level (dark) to the last (bright)."""
    from matplotlib import colormaps

    step = (high - low) / max(1, count - 1)
    return [colormaps["viridis"](low + step * index) for index in range(count)]


def short(name: str, limit: int = 24) -> str:
    """A name of at most ``limit`` letters, as one line that an XML file can hold."""
    line = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


@cache
def _fonts() -> list[str]:
    """Matplotlib's own font, then installed fonts with Chinese, Japanese and Korean."""
    from matplotlib import font_manager

    wide = ["Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC"]
    wide += ["Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS"]
    there = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in wide if name in there)]
