"""The comparison as tables: terminal, Markdown, CSV, JSON, LaTeX, the original experiment's."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detrlab.compare.results import METRICS, Row
from detrlab.errors import printable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable

NOTHING = "–"
"""Shown where there is no number: no such objects, or not measured."""

SIZES = ("small", "medium", "large")
HEADER = 12
"""Characters of a header's line in a terminal."""
GAP, EDGES, MIN_NAMES = 2, 2, 8
"""Characters between two columns and beside all of them, and least of the names."""
MANY_CLASSES = 12
"""A table of more classes has a line for each of them instead of a column."""

_Column = tuple[Callable[[Any], str], Sequence[Any]]
"""How a value is written, and the values by row."""


@dataclass(frozen=True)
class Grid:
    """A table of words; the first column holds names, ``best`` are (row, column) to emphasise."""

    title: str
    headers: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()

    def turned(self) -> Grid:
        """The same with rows and columns exchanged."""
        headers, *cells = zip(*(self.headers, *self.cells), strict=True)
        best = frozenset((column - 1, row + 1) for row, column in self.best)
        return Grid(self.title, headers, tuple(cells), best)

    def columns(self, *chosen: int) -> Grid:
        """The names and some of the columns."""
        kept = (0, *chosen)
        cells = tuple(tuple(row[c] for c in kept) for row in self.cells)
        best = frozenset((row, kept.index(c)) for row, c in self.best if c in kept)
        return Grid(self.title, tuple(self.headers[c] for c in kept), cells, best)

    def markdown(self) -> str:
        """A GitHub table; emphasised cells are bold."""
        lines = [
            "| " + " | ".join(map(_md, self.headers)) + " |",
            "|---|" + "---:|" * (len(self.headers) - 1),
        ]
        lines += ["| " + " | ".join(words) + " |" for words in self._words(_md, "**{}**")]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        r"""A ``tabular`` for ``\usepackage{booktabs}``."""
        lines = [
            r"\begin{tabular}{l" + "r" * (len(self.headers) - 1) + "}",
            r"\toprule",
            " & ".join(map(_tex, self.headers)) + r" \\",
            r"\midrule",
            *(" & ".join(words) + r" \\" for words in self._words(_tex, r"\textbf{{{}}}")),
        ]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def _words(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        return [
            [
                bold.format(escape(cell)) if (r, c) in self.best else escape(cell)
                for c, cell in enumerate(row)
            ]
            for r, row in enumerate(self.cells)
        ]

    def terminal(self, width: int) -> Group:
        """As ``rich`` tables, as many as a terminal of that width needs; each has the names.

        Numbers stay whole. Long headers take several lines; so do names that are wider than what
        the widest column leaves.
        """
        from rich.console import Group

        needs = [self._width(c) for c in range(len(self.headers))]
        names = max(MIN_NAMES, min(needs[0], width - max(needs[1:], default=0) - GAP - EDGES))
        blocks: list[list[int]] = [[]]
        for c, need in enumerate(needs[1:], start=1):
            taken = EDGES + names + sum(GAP + needs[each] for each in blocks[-1])
            if blocks[-1] and taken + GAP + need > width:
                blocks.append([])
            blocks[-1].append(c)
        return Group(*(self.columns(*block)._table(names, not i) for i, block in enumerate(blocks)))

    def _width(self, column: int) -> int:
        """Cells that a column needs: its widest number, or the widest piece of its header."""
        from rich.cells import cell_len

        words = [printable(row[column]) for row in self.cells]
        header = min(HEADER, max(map(cell_len, self.headers[column].split()), default=0))
        return max([header, *map(cell_len, words)])

    def _table(self, names: int, titled: bool) -> RichTable:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(printable(self.title)) if titled else None,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for c, header in enumerate(self.headers):
            lines = textwrap.wrap(printable(header), HEADER, break_long_words=False)
            table.add_column(
                Text("\n".join(lines), overflow="fold"),  # not markup: a class may be "[red]"
                justify="right" if c else "left",
                width=self._width(c) if c else names,
                overflow="fold",
            )
        for r, row in enumerate(self.cells):
            table.add_row(
                *(
                    Text(
                        printable(cell),
                        style="bold" if (r, c) in self.best else "",
                        overflow="fold",
                    )
                    for c, cell in enumerate(row)
                )
            )
        return table


def quality_grid(rows: Sequence[Row], intervals: Mapping[str, str]) -> Grid:
    """AP in points (0 to 100), one row for each detector, with its interval in words."""
    names = {
        "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large",
    }  # fmt: skip
    columns: dict[str, _Column] = {
        "AP": (_points, [row.metrics["ap"] for row in rows]),
        "95 %": (str, [intervals.get(row.name) for row in rows]),
        **{head: (_points, [row.metrics[name] for row in rows]) for head, name in names.items()},
    }
    title = "Average precision in points (0 to 100); s, m, l: small, medium, large objects"
    return _grid(title, rows, columns)


def cost_grid(rows: Sequence[Row]) -> Grid:
    """One row for each detector: what training and inference cost."""
    costs = [row.cost for row in rows]
    columns: dict[str, _Column] = {
        "params": (count, [cost.parameters for cost in costs]),
        "GFLOPs": ("{:.2f}".format, [cost.gflops for cost in costs]),
        "ms/image": ("{:.0f}".format, [cost.latency.get("p50") for cost in costs]),
        "epochs": (str, [len(row.runs[0].epochs) or None for row in rows]),
        "minutes": ("{:.1f}".format, [cost.minutes for cost in costs]),
        "GiB": ("{:.1f}".format, [cost.peak_memory for cost in costs]),
    }
    return _grid("Cost", rows, columns, emphasis=False)


def class_grid(rows: Sequence[Row]) -> Grid:
    """AP of each class in points: one row for each detector, or for each of many classes."""
    columns: dict[str, _Column] = {
        label: (_points, [row.per_class.get(label) for row in rows]) for label in classes_of(rows)
    }
    grid = _grid("AP of each class in points", rows, columns)
    return grid.turned() if len(columns) > MANY_CLASSES else grid


def original_grid(rows: Sequence[Row]) -> Grid:
    """The layout of the original experiment: a row for each metric, fractions."""
    values = {
        "mAP": [row.metrics["ap"] for row in rows],
        "mAP_50": [row.metrics["ap50"] for row in rows],
        "mAP_75": [row.metrics["ap75"] for row in rows],
        **{f"mAP_{each}": [row.per_class.get(each) for row in rows] for each in classes_of(rows)},
        **{f"mAP_{size}": [row.metrics[f"ap_{size}"] for row in rows] for size in SIZES},
    }
    columns: dict[str, _Column] = {name: ("{:.4f}".format, each) for name, each in values.items()}
    title = "The original experiment's layout (fractions)"
    return _grid(title, rows, columns, corner="metric", complete=True).turned()


def csv_text(rows: Sequence[Row]) -> str:
    """One line for each run, fractions at full precision, names as in every JSON file."""
    classes = classes_of(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    costs = ("parameters", "trainable", "gflops", "minutes", "peak_memory")
    writer.writerow(["model", "seed", *METRICS, *(f"ap_class_{name}" for name in classes), *costs])
    for run in (run for row in rows for run in row.runs):
        values = [
            run.entrant,
            run.seed,
            *(run.metrics[name] for name in METRICS),
            *(run.metrics["per_class"].get(name) for name in classes),
            *(getattr(run.cost, name) for name in costs),
        ]
        writer.writerow(["" if value is None else _guarded(value) for value in values])
    return text.getvalue()


def json_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One object for each detector: the mean over its seeds, and every run."""
    return [
        {
            "model": row.name,
            "seeds": list(row.seeds),
            **row.metrics,
            "per_class": row.per_class,
            "cost": vars(row.cost),
            "runs": [
                {
                    "seed": run.seed,
                    **run.metrics,
                    "minutes": run.cost.minutes,
                    "folder": run.folder,
                    "key": run.key,
                }
                for run in row.runs
            ],
        }
        for row in rows
    ]


def classes_of(rows: Sequence[Row]) -> list[str]:
    """Class names in the data set's order."""
    return list(rows[0].per_class) if rows else []


def _grid(
    title: str,
    rows: Sequence[Row],
    columns: Mapping[str, _Column],
    *,
    corner: str = "model",
    emphasis: bool = True,
    complete: bool = False,
) -> Grid:
    """A table with one row for each detector; columns that hold nothing are left out.

    The largest number of a column is emphasised, unless all are equal.
    """
    cells: list[Sequence[str]] = [[row.name for row in rows]]
    headers, best = [corner], set()
    for header, (form, values) in columns.items():
        if not complete and all(value is None for value in values):
            continue
        known = {value for value in values if isinstance(value, float)}
        if emphasis and len(known) > 1:
            best |= {(r, len(headers)) for r, value in enumerate(values) if value == max(known)}
        headers.append(header)
        cells.append([NOTHING if value is None else form(value) for value in values])
    return Grid(title, tuple(headers), tuple(zip(*cells, strict=True)), frozenset(best))


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def count(value: float) -> str:
    """A number of parameters in words."""
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def _md(text: str) -> str:
    """Class names come from the data: they may hold bars, line breaks or markup."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))


def _guarded(value: Any) -> Any:
    """A name that a spreadsheet would run as a formula is quoted."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
