"""Detectors on the same data with the same budget, judged by one evaluator."""

from detrlab.compare.budget import Budget
from detrlab.compare.entrants import Entrant, ladder, named, varied
from detrlab.compare.judged import Trained
from detrlab.compare.study import Comparison, collect, compare

__all__ = [
    "Budget",
    "Comparison",
    "Entrant",
    "Trained",
    "collect",
    "compare",
    "ladder",
    "named",
    "varied",
]
