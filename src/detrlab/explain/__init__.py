"""See inside a detector: where it looks, how its boxes move, why an object was missed."""

from detrlab.explain.explanation import Explanation, Look, Row, explain, explain_image
from detrlab.explain.sampling import Samples

__all__ = ["Explanation", "Look", "Row", "Samples", "explain", "explain_image"]
