"""The table of a comparison's runs while they train in jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from detrlab.cli.common import say
from detrlab.errors import printable

if TYPE_CHECKING:
    from rich.console import Group

    from detrlab.compare.submitted import Show, State

_COLOURS = {"queued": "dim", "running": "cyan", "done": "green", "failed": "red"}


@contextmanager
def watching() -> Iterator[tuple[Callable[[str], None], Show | None]]:
    """How to print a line, and how to show the states of the runs (None without a terminal)."""
    if not sys.stderr.isatty():
        yield say, None
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with ExitStack() as stack:
        shown: list[Live] = []

        def show(states: Sequence[State]) -> None:
            if not shown:
                shown.append(stack.enter_context(Live(console=console, auto_refresh=False)))
            shown[0].update(table(states, console.height - 4), refresh=True)
            if all(state.is_over for state in states):
                stack.close()

        def print_above(line: str) -> None:
            for each in line.split("\n"):
                console.print(printable(each), markup=False, highlight=False, soft_wrap=True)

        yield print_above, show


def table(states: Sequence[State], height: int) -> Group:
    """One row for each run, in at most ``height`` lines; below them counts and reasons.

    Where there are more runs, queued and then finished ones are left out.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    failures = [state for state in states if state.kind == "failed"]
    rows = list(states)
    for kind in ("queued", "done"):
        for state in [each for each in reversed(states) if each.kind == kind]:
            if len(rows) + len(failures) + 4 > height:
                rows.remove(state)
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("detector", overflow="fold")
    grid.add_column("state", overflow="fold")
    for header in ("seed", "epoch", "AP", "min", "left"):
        grid.add_column(header, justify="right", no_wrap=True)
    for state in rows:
        why = f" ({state.why})" if state.why and state.kind == "queued" else ""
        cells = (
            state.run.entrant,
            f"{state.kind}{why}",
            str(state.run.seed),
            f"{state.epoch}/{state.epochs or '?'}" if state.epoch else "",
            _number(state.ap, 100),
            _number(state.minutes),
            state.time_left,
        )
        style = _COLOURS[state.kind]
        words = [
            Text(printable(cell), style=style if i == 1 else "") for i, cell in enumerate(cells)
        ]
        grid.add_row(*words)
    counts = [(kind, sum(state.kind == kind for state in states)) for kind in _COLOURS]
    lines = [", ".join(f"{count} {kind}" for kind, count in counts if count)]
    lines += [state.line() for state in failures]
    return Group(grid, *(Text(printable(line)) for line in lines))


def _number(value: float | None, times: float = 1.0) -> str:
    return "" if value is None else f"{value * times:.1f}"
