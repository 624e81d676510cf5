"""A progress bar during training, on a terminal only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from detrlab.cli.common import printable_lines, say

if TYPE_CHECKING:
    from detrlab.training.engine import StepReport

Say = Callable[[str], None]
OnStep = Callable[["StepReport"], None]


def is_main_process() -> bool:
    """Whether this is the process that prints, of several."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def following(steps: int) -> Iterator[tuple[Say, OnStep | None]]:
    """How to print a line, and the callback for each step (None without a terminal).

    Args:
        steps: of the whole training.
    """
    if not is_main_process() or not sys.stderr.isatty():
        yield say, None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeLeft(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loss -", total=steps)

        def tell(report: StepReport) -> None:
            loss = report.measures["loss"]
            progress.update(task, completed=report.step + 1, description=f"loss {loss:.3f}")

        def print_above(line: str) -> None:
            line = printable_lines(line)
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield print_above, tell
