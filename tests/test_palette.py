"""Colours stay apart for colour-blind readers and legible on their backgrounds."""

from itertools import combinations

import numpy as np
import pytest

from detrlab import palette
from detrlab.palette import colour_of, from_hex, luminance, text_colour_on, to_hex

# Machado et al. 2009, severity 1, in linear RGB.
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.969]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9309, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


def lab(colour, vision):
    """CIE L*a*b* of a colour as seen with a colour vision."""
    part = np.array(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(VISIONS[vision]) @ linear, 0, 1) / (0.9505, 1, 1.0888)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


SETS = {
    "detectors": palette.DETECTORS,
    "detectors on dark": palette.DETECTORS_ON_DARK,
    "the first five": palette.DETECTORS[:5],
    "sizes": tuple(palette.SIZES.values()),
    "outcomes": (palette.FOUND, palette.FALSE_ALARM, palette.MISSED, palette.TRUTH),
    "verdicts": tuple(palette.VERDICTS.values()),
    "costs": tuple(palette.COST_TERMS.values()),
    "classes": tuple(to_hex(colour_of(index)) for index in range(12)),
}
LEAST = {"classes": 8, "verdicts": 10, "detectors": 12, "detectors on dark": 12}


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("name", SETS)
def test_colours_stay_apart(name, vision):
    for one, other in combinations(SETS[name], 2):
        distance = np.linalg.norm(lab(from_hex(one), vision) - lab(from_hex(other), vision))
        assert distance >= LEAST.get(name, 15), (one, other)


@pytest.mark.parametrize(
    ("colours", "background"),
    [(palette.DETECTORS, "#ffffff"), (palette.DETECTORS_ON_DARK, "#16181b")],
)
def test_lines_stand_out_from_their_background(colours, background):
    behind = luminance(from_hex(background))
    for colour in colours:
        low, high = sorted([luminance(from_hex(colour)), behind])
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_text_is_readable_on_every_class_colour():
    colours = [colour_of(index) for index in range(200)]
    assert len(set(colours)) == 200
    for colour in colours:
        low, high = sorted([luminance(colour), luminance(text_colour_on(colour))])
        assert (high + 0.05) / (low + 0.05) >= 4.5
        assert from_hex(to_hex(colour)) == colour
