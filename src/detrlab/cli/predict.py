"""``detrlab predict``: find objects in images, videos and camera pictures."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from detrlab.errors import UserError, did_you_mean, printable

if TYPE_CHECKING:
    from torch import Tensor

    from detrlab.api import Detector
    from detrlab.detections import Detections
    from detrlab.export import OtherDetector
    from detrlab.predicting.sources import Source
    from detrlab.predicting.tiles import Tiled
    from detrlab.predicting.writers import Item, Writer


@dataclass(frozen=True)
class Options:
    """Find objects in images, videos and camera pictures, and draw them.

    An image that cannot be read is named and passed over. Exit code 0: some could be read; 2: none.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image and video files, folders, patterns such as 'photos/**/*.jpg', http addresses, or
    camera:0."""
    model: Annotated[str, tyro.conf.arg(aliases=["--weights"])] = "deimv2-femto"
    """A checkpoint, an exported file, or a detector with published weights. The default comes with
    detrlab and finds the 80 classes of COCO."""
    threshold: Annotated[float | None, tyro.conf.arg(aliases=["--conf"])] = None
    """Leave out detections that score less; by default the checkpoint's own suggestion, or 0.3."""
    classes: tuple[str, ...] = ()
    """Names of the classes to keep; all by default."""
    imgsz: int | None = None
    """Another image size than the checkpoint was trained with: a larger one for small objects."""
    tiles: int | Literal["auto"] | None = None
    """Also search overlapping tiles of so many pixels, for small objects in large pictures; auto:
    of the detector's image size."""
    overlap: float = 0.2
    """Share of a tile that its neighbour sees too; objects up to this size lie whole in one."""
    save: tuple[Literal["pictures", "coco", "csv", "yolo"], ...] = ("pictures", "coco")
    """What to write: pictures (and videos), predictions.json, predictions.csv, YOLO labels."""
    frames: int | None = None
    """Stop each video or camera after so many frames."""
    output: str = "runs/predict"
    """Folder for what is written; nothing in it is overwritten."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""
    json: bool = False
    """Print the detections as COCO json, and write nothing."""


def run(options: Options) -> int:
    """Predict; returns the exit code."""
    from detrlab.cli.common import say
    from detrlab.predicting.sources import find_sources
    from detrlab.predicting.video import require_av

    if options.frames is not None and options.frames < 1:
        raise UserError(f"--frames {options.frames}: take at least 1")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold {options.threshold}: scores are between 0 and 1")
    sources = find_sources(options.images)
    if any(source.kind != "image" for source in sources):
        require_av()
    detector = _open(options)
    for name in options.classes:
        if name not in detector.classes:
            hint = did_you_mean(name, detector.classes)
            raise UserError(f"--classes {name}: the detector has no such class{hint}")
    failed: list[UserError] = []

    def report(error: UserError) -> None:
        failed.append(error)
        if len(sources) > 1:
            say(f"passed over: {error}")

    seen, objects, started = 0, 0, time.perf_counter()
    with ExitStack() as stack:
        downloads = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="detrlab-")))
        output = _Output(options, detector.classes)
        stack.callback(output.close)
        waiting: deque[Item] = deque()

        def pictures() -> Iterator[Tensor]:
            for item, pixels in _items(sources, downloads, options.frames, report):
                waiting.append(item)
                yield pixels

        found_each = detector.predict_each(
            pictures(),
            threshold="auto" if options.threshold is None else options.threshold,
            keep_image="pictures" in options.save and not options.json,
        )
        try:
            for found in found_each:
                item = waiting.popleft()
                kept = found.only(options.classes) if options.classes else found
                output.add(item, kept)
                seen, objects = seen + 1, objects + len(kept)
                _show(seen, started, item)
        except KeyboardInterrupt:  # how a camera is stopped; what is written is finished
            if not any(source.kind == "camera" for source in sources):
                raise
        if not seen:
            raise UserError(
                str(failed[0])
                if len(sources) == 1 and failed
                else f"none of {len(sources)} images and videos could be read"
            )
    if len(sources) == 1 and failed:  # a video that is damaged further on
        say(f"stopped early: {failed[0]}")
    rate = seen / (time.perf_counter() - started)
    passed = f"; {len(failed)} could not be read" if failed else ""
    where = f": {output.folder}" if output.folder else ""
    told = f"{objects:,} detections in {seen:,} images{passed}; {rate:.1f} images a second{where}"
    say(told) if options.json else print(printable(told))
    return 0


def _open(options: Options) -> Detector | OtherDetector | Tiled:
    """The detector, or what looks through it at tiles."""
    from detrlab.api import Detector
    from detrlab.cli.common import open_predictor
    from detrlab.predicting.tiles import Tiled

    detector = open_predictor(options.model, options.device, options.imgsz)
    if options.tiles is None:
        return detector
    if options.tiles != "auto":
        return Tiled(detector, options.tiles, options.overlap)
    if not isinstance(detector, Detector):
        raise UserError(f"--tiles auto: {options.model} names no image size; write --tiles 640")
    return detector.tiled(overlap=options.overlap)


def _items(
    sources: Sequence[Source],
    downloads: Path,
    frames: int | None,
    report: Callable[[UserError], None],
) -> Iterator[tuple[Item, Tensor]]:
    """Every picture with what it is, read ahead; errors are reported."""
    from detrlab.images import read_picture
    from detrlab.predicting.ahead import ahead, in_thread
    from detrlab.predicting.sources import local
    from detrlab.predicting.video import open_video
    from detrlab.predicting.writers import Item

    taken: set[str] = set()

    def stem(source: Source) -> str:
        names = (f"{source.stem}{f'-{n}' * (n > 1)}" for n in count(1))
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        return name

    def read(source: Source) -> tuple[Source, Tensor | UserError]:
        try:
            path = local(source, downloads)
            pixels = read_picture(path)
        except UserError as error:
            return source, _about(source, error, downloads)
        if source.is_url:
            path.unlink()
        return source, pixels

    for kind, group in groupby(sources, key=lambda source: source.kind):
        if kind == "image":
            for source, pixels in ahead(read, group):
                if isinstance(pixels, UserError):
                    report(pixels)
                else:
                    yield Item(source.name, stem(source)), pixels
            continue
        for source in group:
            name = stem(source)
            try:
                place = source.name if kind == "camera" else str(local(source, downloads))
                live = kind == "camera"
                with (
                    open_video(place) as video,
                    closing(in_thread(video, newest=live)) as early,
                ):
                    for number, frame in enumerate(islice(early, frames)):
                        yield Item(source.name, name, number, frame.time), frame.pixels
            except UserError as error:
                report(_about(source, error, downloads))


def _about(source: Source, error: UserError, downloads: Path) -> UserError:
    """The error with the address of a downloaded file instead of its temporary name."""
    place = re.escape(str(downloads)) + r"[/\\]\S+"
    return UserError(re.sub(place, lambda _: source.name, str(error)))


class _Output:
    """The chosen writers; the folder is made when there is something to write."""

    def __init__(self, options: Options, classes: Sequence[str]) -> None:
        self._options = options
        self._classes = classes
        self._open = ExitStack()
        self._writers: list[Writer] = []
        self.folder: Path | None = None

    def add(self, item: Item, found: Detections) -> None:
        with self._explained():
            if not self._writers:
                self._start()
            for writer in self._writers:
                writer.add(item, found)
        if self.folder is not None and item.frame is None:
            counts = ", ".join(f"{found.names.count(n)} {n}" for n in dict.fromkeys(found.names))
            print(printable(f"{item.name}: {counts or 'nothing'}"))

    def _start(self) -> None:
        from detrlab.cli.common import fresh_folder
        from detrlab.predicting import writers

        if self._options.json:
            self._writers = [writers.CocoWriter(sys.stdout)]
        else:
            folder = self._open.enter_context(fresh_folder(self._options.output))
            self.folder = folder

            def text(name: str) -> Any:
                return self._open.enter_context(
                    (folder / name).open("w", encoding="utf-8", newline="")
                )

            make: dict[str, Callable[[], Writer]] = {
                "pictures": lambda: writers.PictureWriter(folder),
                "coco": lambda: writers.CocoWriter(text("predictions.json")),
                "csv": lambda: writers.CsvWriter(text("predictions.csv")),
                "yolo": lambda: writers.YoloWriter(folder, self._classes),
            }
            self._writers = [make[name]() for name in dict.fromkeys(self._options.save)]
        for writer in self._writers:
            self._open.callback(writer.close)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A full disk is one line; a closed pipe behind --json is none."""
        from detrlab import files

        try:
            yield
        except OSError as error:
            if self.folder is None:
                raise
            raise files.explain(error, self.folder) from None

    def close(self) -> None:
        """Finish all files."""
        with self._explained():
            self._open.close()


def _show(seen: int, started: float, item: Item) -> None:
    """Progress within a video, on a terminal."""
    if item.frame is not None and sys.stderr.isatty() and seen % 10 == 0:
        rate = seen / (time.perf_counter() - started)
        line = f"\r{printable(item.name)}: frame {item.frame + 1:,}, {rate:.1f} a second "
        print(line, end="", file=sys.stderr, flush=True)
