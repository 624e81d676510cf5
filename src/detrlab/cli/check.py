"""``detrlab check``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

import tyro

from detrlab.errors import UserError


@dataclass(frozen=True)
class Options:
    """Check a data set before training: what is in it, and what is wrong with it.

    Exit code 0: no errors; 1: there are errors; 2: no data set could be read.
    """

    place: Annotated[str | None, tyro.conf.Positional] = None
    """The data, as for --data."""
    data: str | None = None
    """A folder, file or zip of annotated images, hf: and a data set of the Hugging Face Hub, or the
    name of a built-in set."""
    fix: str | None = None
    """Write a cleaned copy into this new folder, with a list of all changes."""
    output: str | None = None
    """The HTML page to write; by default check-NAME.html here. Nothing is overwritten."""
    quick: bool = False
    """Do not read pixels: truncated files, duplicates and leaks are not found."""
    no_images: bool = False
    """Check the annotations alone, as --quick: declared sizes are not compared with the files."""
    imgsz: int | None = None
    """Short side of images in training, to find objects that are too small at that size."""
    queries: int = 100
    """Objects that a detector can find in one image."""
    json: bool = False
    """Print everything as JSON and write no page."""


def run(options: Options) -> int:
    """Check; returns the exit code."""
    from detrlab.cli.common import say, show
    from detrlab.config import DataConfig
    from detrlab.data.check import check
    from detrlab.data.check_page import write_page
    from detrlab.data.convert import fix

    given = [each for each in (options.place, options.data) if each is not None]
    if len(given) != 1:
        raise UserError("name one data set: detrlab check path/to/data, or --data path/to/data")
    (data,) = given
    config = DataConfig()
    if options.imgsz is not None:
        config = config.resized(options.imgsz)
    progress = _show if sys.stderr.isatty() else None
    if options.fix is not None:
        copy = fix(data, options.fix, config, progress=progress)
        if options.json:
            values = {"images": copy.images, "boxes": copy.boxes, "changes": copy.changes}
            print(json.dumps({"folder": str(copy.folder), **values}))
            return 0
        show("\n".join(copy.changes))
        show(
            f"{len(copy.changes):,} change{'s' * (len(copy.changes) != 1)} (see changes.txt); "
            f"{copy.images:,} images and {copy.boxes:,} boxes are in {copy.folder}; "
            f"{data} was not changed"
        )
        return 0
    if options.output is not None and not options.json and Path(options.output).exists():
        raise UserError(f"--output {options.output} exists already: choose another name")
    quick, queries = options.quick, options.queries
    report = check(
        data, config, num_queries=queries, quick=quick, no_images=options.no_images,
        progress=progress,
    )  # fmt: skip
    if options.json:
        print(json.dumps(report.to_dict()))
        return report.exit_code
    show("\n".join(report.lines()))
    names = (f"check-{report.name}{f'-{n}' * (n > 1)}.html" for n in count(1))
    page = Path(options.output or next(name for name in names if not Path(name).exists()))
    write_page(report, page)
    say(f"page: {page}")
    return report.exit_code


def _show(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done:,} of {total:,} images done", end=end, file=sys.stderr, flush=True)
