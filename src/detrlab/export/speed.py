"""Inference in PyTorch beside ONNX Runtime, on the same machine in the same rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from detrlab.benchmark import timing
from detrlab.export import deploy
from detrlab.export.packages import needs
from detrlab.export.sessions import open_session
from detrlab.models.prepare import plain

if TYPE_CHECKING:
    from detrlab.api import Detector

RUNTIME = "ONNX Runtime"


def beside_onnxruntime(
    detector: Detector,
    size: tuple[int, int],
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    rounds: int,
) -> list[dict[str, Any]]:
    """Time inference from resized pictures to detections, in turn.

    Args:
        detector: is exported into a temporary folder.
        size: (height, width) of the pictures.
        batches: so many pictures at once.
        threads: so many threads.
        rounds: of timing, after one that does not count.

    Returns:
        A row for each number of pictures and threads: milliseconds of both, and how many times as
        long PyTorch takes.

    Raises:
        UserError: ONNX Runtime is not installed, or the detector cannot be exported.
    """
    for package in ("onnxruntime", "onnx", "onnxscript"):
        needs(package)
    module = deploy.deployed(detector)
    used = torch.get_num_threads()
    rows = []
    with tempfile.TemporaryDirectory(prefix="detrlab-") as folder:
        path = Path(folder) / "detector.onnx"
        program = deploy.trace(deploy.deployed(detector, plain(detector.network)), size)
        deploy.write_onnx(program, path, {})
        try:
            for count in threads:
                torch.set_num_threads(count)
                session = open_session(path, count)
                for batch in batches:
                    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)
                    sizes = torch.tensor([[size[1], size[0]]] * batch)
                    feeds = dict(zip(deploy.INPUTS, (images, sizes), strict=True))

                    @torch.inference_mode()
                    def ours(images: torch.Tensor = images, sizes: torch.Tensor = sizes) -> Any:
                        return module(images, sizes)

                    calls: dict[str, Callable[[], Any]] = {
                        "PyTorch": ours,
                        RUNTIME: lambda s=session, f=feeds: s.run(f),  # type: ignore[misc]
                    }
                    times = timing.in_turn(calls, rounds)
                    own, other = times["PyTorch"], times[RUNTIME]
                    rows.append(
                        {
                            "batch": batch,
                            "threads": count,
                            **{name: each.to_dict() for name, each in times.items()},
                            "times_as_long": {
                                "wall": timing.ratio(own.wall, other.wall),
                                "processor": timing.ratio(own.processor, other.processor),
                            },
                        }
                    )
        finally:
            torch.set_num_threads(used)
    return rows
