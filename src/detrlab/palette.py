"""Every colour of detrlab's pictures and pages, in one place.

All sets stay apart for readers with protanopia, deuteranopia or tritanopia
(``tests/test_palette.py`` simulates them). Detectors have two sets, one for light and one for
dark backgrounds; the other sets are drawn on photographs or as filled areas.
"""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

DETECTORS = (
    "#0072b2", "#d55e00", "#009e73", "#8a2be2", "#663311", "#1f1f1f", "#cc3d8f", "#440055",
)  # fmt: skip
"""Lines of the detectors of a comparison on a light background, in the order of the table."""

DETECTORS_ON_DARK = (
    "#4db2ec", "#ff8a4a", "#2fcf9f", "#9d7dff", "#f7e34a", "#f2f2f2", "#ff7fc4", "#996644",
)  # fmt: skip
"""The same on a dark background."""

SIZES = {"small": "#56b4e9", "medium": "#e69f00", "large": "#6a3d9a"}
"""Object sizes of the COCO protocol."""

FOUND, FALSE_ALARM, MISSED, TRUTH = "#009e73", "#d55e00", "#e69f00", "#56b4e9"
"""Detections that find an object, those that find none, objects not found, all annotations."""

VERDICTS = {
    "found": "#00b48a",
    "taken": "#e88bbd",
    "another class": "#56b4e9",
    "unsure": "#e69f00",
    "badly placed": "#d55e00",
    "unseen": "#8a7dff",
}
"""What became of an annotated object (``explain.missed.Verdict``), on a dimmed photograph."""

COST_TERMS = {"class": "#404040", "L1": "#8f8f8f", "GIoU": "#d0d0d0"}
"""The terms of the matching cost; grey, because they stand beside ``VERDICTS``."""

INK, SOFT, FAINT, RULE, PAPER = "#222222", "#5c5c5c", "#8c8c8c", "#d8d8d8", "#ffffff"
"""Text, less important text, lines that only guide the eye, grid lines, background."""

PAGE = {
    "paper": PAPER, "ink": INK, "soft": SOFT, "rule": RULE, "card": "#f6f6f4", "edge": "#8a8a86",
    "mark": "#fff3c4", "accent": DETECTORS[0], "focus": DETECTORS[1],
    "found": FOUND, "false": FALSE_ALARM, "missed": MISSED, "truth": TRUTH,
    "error": "#b3261e", "warning": "#9a6700", "note": "#3b6ea5", "good": "#1a7f4b",
    **{f"s{index}": colour for index, colour in enumerate(DETECTORS)},
}  # fmt: skip
"""The CSS variables of a page, by name, on a light screen and on paper."""

PAGE_ON_DARK = {
    "paper": "#16181b", "ink": "#ececec", "soft": "#a5a9ae", "rule": "#3a3f45", "card": "#1f2226",
    "edge": "#767b82", "mark": "#4a4014",
    "accent": DETECTORS_ON_DARK[0], "focus": DETECTORS_ON_DARK[1],
    "error": "#ff8a80", "warning": "#e3b341", "note": "#7fb2e5", "good": "#5fc990",
    **{f"s{index}": colour for index, colour in enumerate(DETECTORS_ON_DARK)},
}  # fmt: skip
"""The variables that differ on a dark screen."""

SEQUENTIAL = "plasma"
"""Matplotlib's name of the colour map for weights."""

_CLASSES: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (255, 225, 25),
    (0, 92, 214),
    (213, 94, 0),
    (214, 96, 160),
    (77, 77, 77),
    (90, 15, 138),
    (0, 210, 190),
    (155, 90, 40),
    (170, 220, 60),
)


def colour_of(index: int) -> Colour:
    """The colour of a class, the same in every picture and report.

    Args:
        index: of the class; beyond the fixed colours hues follow in steps of the golden ratio.
    """
    if index < len(_CLASSES):
        return _CLASSES[index]
    hue = (index * 0.618034) % 1.0
    lightness = 0.45 + 0.2 * (index % 2)
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def css(colours: dict[str, str]) -> str:
    """CSS declarations of variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def to_hex(colour: Colour) -> str:
    """``(255, 0, 0)`` -> ``"#ff0000"``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def from_hex(text: str) -> Colour:
    """``"#ff0000"`` -> ``(255, 0, 0)``."""
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def text_colour_on(background: Colour) -> Colour:
    """Black or white, whichever has the higher contrast."""
    return (0, 0, 0) if (luminance(background) + 0.05) ** 2 > 0.05 * 1.05 else (255, 255, 255)


def luminance(colour: Colour) -> float:
    """Relative luminance, 0 for black to 1 for white.

    Source: WCAG 2.2, definition of relative luminance.
    """
    red, green, blue = (
        part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in colour
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
