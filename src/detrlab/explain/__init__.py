"""See inside a detector: where it looks, how its boxes move, why an object was missed."""

from detrlab.explain.explanation import Explanation, explain
from detrlab.explain.looks import Row, Samples

__all__ = ["Explanation", "Row", "Samples", "explain"]
