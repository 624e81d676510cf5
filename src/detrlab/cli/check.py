"""``detrlab check``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.config import DataConfig


@dataclass(frozen=True)
class Options:
    """Look through a data set before it costs an evening: what is in it, and what is wrong.

    Exit code 0: nothing is wrong that would spoil a training; 1: something is; 2: there is no
    data set that could be looked at.
    """

    data: Annotated[str, tyro.conf.Positional]
    """A folder, file or zip of annotated images, or the name of a built-in set."""
    fix: str | None = None
    """Write a cleaned copy into this new folder, beside a list of what was changed."""
    output: str | None = None
    """Where to write the page; by default check-NAME.html here. Nothing is overwritten."""
    quick: bool = False
    """Leave the pixels unread: no truncated files, duplicates or leaks are found."""
    imgsz: int | None = None
    """Short side that training will use, to find objects that vanish at that size."""
    queries: int = 100
    """Objects a detector can find in one image."""
    json: bool = False
    """Print everything as JSON and write no page."""


def run(options: Options) -> int:
    """Check; returns the exit code."""
    from detrlab.cli.common import say
    from detrlab.config import DataConfig
    from detrlab.data.check import check
    from detrlab.data.check_page import write_page

    config = DataConfig()
    if options.imgsz is not None:
        config = config.resized(options.imgsz)
    if options.fix is not None:
        return _fix(options, config)
    if options.output is not None and not options.json:
        _page_path(options.output, "")  # a name that is taken is told before the work
    report = check(
        options.data,
        config,
        num_queries=options.queries,
        quick=options.quick,
        progress=_progress("looked at"),
    )
    if options.json:
        print(json.dumps(report.to_dict()))
        return report.exit_code
    print("\n".join(report.lines()))
    page = _page_path(options.output, report.name)
    write_page(report, page)
    say(f"page: {page}")
    return report.exit_code


def _fix(options: Options, config: DataConfig) -> int:
    from detrlab.data.repair import fix

    assert options.fix is not None
    repair = fix(options.data, options.fix, config, progress=_progress("done"))
    if options.json:
        values = {"images": repair.images, "boxes": repair.boxes, "changes": repair.changes}
        print(json.dumps({"folder": str(repair.folder), **values}))
    else:
        print("\n".join(repair.changes))
        print(
            f"{len(repair.changes):,} change{'s' * (len(repair.changes) != 1)} (see changes.txt); "
            f"{repair.images:,} images and {repair.boxes:,} boxes are in {repair.folder}; "
            f"{options.data} is as it was"
        )
    return 0


def _page_path(asked: str | None, name: str) -> Path:
    if asked is not None:
        path = Path(asked)
        if path.exists():
            raise UserError(f"--output {path} exists already: choose another name")
        return path
    number = 1
    while True:
        path = Path(f"check-{name}.html" if number == 1 else f"check-{name}-{number}.html")
        if not path.exists():
            return path
        number += 1


def _progress(word: str) -> Callable[[int, int], None] | None:
    """A line that counts on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done:,} of {total:,} images {word}", end=end, file=sys.stderr, flush=True)

    return show
