"""Detectors outside of PyTorch: export with a certificate, and any ONNX file as a detector."""

from detrlab.export.base import OtherDetector
from detrlab.export.detector import ExportedDetector, load
from detrlab.export.hub import TransformersDetector, transformers_detector
from detrlab.export.sessions import SUFFIXES

__all__ = [
    "SUFFIXES",
    "ExportedDetector",
    "OtherDetector",
    "TransformersDetector",
    "load",
    "transformers_detector",
]
