"""What ``predict`` writes, while it runs: nothing of a long video or a large folder is kept."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from detrlab.detections import Detections
from detrlab.predicting.video import VideoWriter

FORMATS = ("pictures", "coco", "csv", "yolo")


class Item(NamedTuple):
    """The image that detections are of.

    Attributes:
        name: of the file, address or camera.
        stem: a name for files about it, which no other source has.
        frame: its number in a video, from 0; None for an image.
        time: seconds from the start of a video.
    """

    name: str
    stem: str
    frame: int | None = None
    time: float = 0.0

    @property
    def image_id(self) -> str:
        """The name, with the number of the frame in a video."""
        return self.name if self.frame is None else f"{self.name}#{self.frame}"


class Writer(Protocol):
    """Takes detections one image after the other."""

    def add(self, item: Item, found: Detections) -> None:
        """Write the detections of an image."""

    def close(self) -> None:
        """Finish what is open."""


class CocoWriter:
    """COCO result records, as one JSON list in one line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._separator = "["

    def add(self, item: Item, found: Detections) -> None:
        """Write the detections of an image."""
        for record in found.to_coco():
            self._stream.write(self._separator + json.dumps({**record, "image_id": item.image_id}))
            self._separator = ", "

    def close(self) -> None:
        """Write the end of the list."""
        self._stream.write("]\n" if self._separator != "[" else "[]\n")
        self._stream.flush()


class CsvWriter:
    """A table with a row for each detection."""

    COLUMNS = ("image", "frame", "seconds", "class", "category_id", "score", "x0", "y0", "x1", "y1")

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._rows = csv.writer(stream)
        self._rows.writerow(self.COLUMNS)

    def add(self, item: Item, found: Detections) -> None:
        """Write the detections of an image."""
        place = (item.name, *(("", "") if item.frame is None else (item.frame, f"{item.time:.3f}")))
        rows = zip(
            found.names, found.labels.tolist(), found.scores.tolist(), found.boxes, strict=True
        )
        for name, label, score, box in rows:
            sides = [f"{side:.2f}" for side in box.tolist()]
            self._rows.writerow([*place, name, found.category_ids[label], f"{score:.4f}", *sides])

    def close(self) -> None:
        """Write what waits."""
        self._stream.flush()


class YoloWriter:
    """A label file for each image in ``labels``, and the names in ``classes.txt``."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._folder = folder / "labels"
        self._folder.mkdir()
        names = "".join(f"{name}\n" for name in classes)
        (folder / "classes.txt").write_text(names, encoding="utf-8")

    def add(self, item: Item, found: Detections) -> None:
        """Write the label file of an image; one without objects is empty."""
        number = "" if item.frame is None else f"_{item.frame:06d}"
        lines = "".join(f"{line}\n" for line in found.to_yolo())
        (self._folder / f"{item.stem}{number}.txt").write_text(lines, encoding="utf-8")

    def close(self) -> None:
        """Nothing is open."""


class PictureWriter:
    """Pictures and videos with the boxes drawn, by a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._video: tuple[str, VideoWriter] | None = None
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def add(self, item: Item, found: Detections) -> None:
        """Draw an image; waits where the thread is far behind."""
        self._waiting.append(self._pool.submit(self._draw, item, found))
        if len(self._waiting) > 4:
            self._waiting.popleft().result()

    def target(self, item: Item) -> Path:
        """The file of an image, or of the video that it is a frame of."""
        return self._folder / f"{item.stem}{'.jpg' if item.frame is None else '.mp4'}"

    def _draw(self, item: Item, found: Detections) -> None:
        if item.frame is None:
            found.plot(0.0).save(self.target(item), quality=90)
            return
        if self._video is None or self._video[0] != item.stem:
            self._end_video()
            self._video = item.stem, VideoWriter(self.target(item))
        self._video[1].add(found.plot(0.0), item.time)

    def _end_video(self) -> None:
        if self._video is not None:
            self._video[1].close()
            self._video = None

    def close(self) -> None:
        """Draw what waits, and finish the video."""
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown()
            self._end_video()
