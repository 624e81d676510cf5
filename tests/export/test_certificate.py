"""What makes a file refused."""

import pytest

from detrlab.export.agreement import Agreement
from detrlab.export.exporting import _reasons

GOOD = {
    "images": 2, "compared": 9, "least_score": 0.05, "lost": 0, "box": 0.04, "score": 9e-5,
    "unstable": 3, "unstable_box": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"lost": 1}, "1 of 9 detections have no counterpart"),
        ({"box": 0.06}, "a box differs by 0.060 px of 640, and may by 0.05"),
        ({"score": 2e-4}, "a score differs by 0.000200, and may by 0.0001"),
    ],
)
def test_float32_must_be_exact(changes, message):
    reasons = _reasons("float32", Agreement(**{**GOOD, **changes}), None)
    assert reasons == ([message] if message else [])


@pytest.mark.parametrize(
    ("precision", "before", "after", "accepted"),
    [
        ("int8", 0.40, 0.391, True),
        ("int8", 0.40, 0.389, False),
        ("float16", 0.40, 0.396, True),
        ("float16", 0.40, 0.391, False),
        ("int8", 0.0, 0.0, False),
        ("int8", 0.40, None, False),
    ],
)
def test_fewer_bits_are_judged_by_ap(precision, before, after, accepted):
    far = Agreement(**{**GOOD, "box": 3.0, "lost": 4})
    reasons = _reasons(precision, far, {"before": before, "after": after})
    assert (not reasons) == accepted
