"""The comparison as tables: terminal, Markdown, CSV, JSON, LaTeX, the original experiment's."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detrlab.compare.results import METRICS, Row

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NOTHING = "–"
"""Stands where there is no number: no such objects, or not measured."""


@dataclass(frozen=True)
class Grid:
    """A table of words, before it takes a form.

    Attributes:
        title: one line above it.
        headers: of the columns; the first column holds names.
        cells: one tuple a row.
        best: (row, column) of the cells to emphasise.
    """

    title: str
    headers: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()

    def markdown(self) -> str:
        """A GitHub table; emphasised cells are bold."""
        lines = [
            "| " + " | ".join(_md(header) for header in self.headers) + " |",
            "|" + "---|" + "---:|" * (len(self.headers) - 1),
        ]
        for r, row in enumerate(self.cells):
            words = (
                f"**{_md(cell)}**" if (r, c) in self.best else _md(cell)
                for c, cell in enumerate(row)
            )
            lines.append("| " + " | ".join(words) + " |")
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        r"""A ``tabular`` for ``\usepackage{booktabs}``."""
        lines = [
            r"\begin{tabular}{l" + "r" * (len(self.headers) - 1) + "}",
            r"\toprule",
            " & ".join(_tex(header) for header in self.headers) + r" \\",
            r"\midrule",
        ]
        for r, row in enumerate(self.cells):
            words = (
                rf"\textbf{{{_tex(cell)}}}" if (r, c) in self.best else _tex(cell)
                for c, cell in enumerate(row)
            )
            lines.append(" & ".join(words) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def terminal(self) -> RichTable:
        """A ``rich`` table."""
        from rich.box import SIMPLE_HEAD
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for c, header in enumerate(self.headers):
            # Text, not markup: a class may be called "[red]". Where the terminal is too narrow a
            # header takes several lines, so that the numbers stay whole.
            table.add_column(
                Text(header, overflow="fold"),
                justify="right" if c else "left",
                min_width=max((cell_len(row[c]) for row in self.cells), default=0),
            )
        for r, row in enumerate(self.cells):
            table.add_row(
                *(
                    Text(cell, style="bold" if (r, c) in self.best else "")
                    for c, cell in enumerate(row)
                )
            )
        return table


def quality_grid(rows: Sequence[Row], intervals: Mapping[str, str] | None = None) -> Grid:
    """One line a detector, average precision in points (0 to 100).

    Args:
        rows: of the comparison.
        intervals: for each name, the interval of its AP in words.
    """
    grid = _grid(
        "Average precision in points (0 to 100); s, m, l: small, medium, large objects",
        rows,
        [
            _Column("AP", _metric("ap"), emphasise=True),
            _Column("AP50", _metric("ap50"), emphasise=True),
            _Column("AP75", _metric("ap75"), emphasise=True),
            _Column("APs", _metric("ap_small"), emphasise=True),
            _Column("APm", _metric("ap_medium"), emphasise=True),
            _Column("APl", _metric("ap_large"), emphasise=True),
        ],
    )
    if not intervals:
        return grid
    return Grid(
        grid.title,
        (*grid.headers[:2], "95 %", *grid.headers[2:]),
        tuple(
            (*cells[:2], intervals.get(row.name, NOTHING), *cells[2:])
            for row, cells in zip(rows, grid.cells, strict=True)
        ),
        frozenset((r, c + (c > 1)) for r, c in grid.best),
    )


def cost_grid(rows: Sequence[Row]) -> Grid:
    """One line a detector: what it took and what it takes."""
    return _grid(
        "Cost",
        rows,
        [
            _Column("params", lambda row: row.cost.parameters, _count),
            _Column("GFLOPs", lambda row: row.cost.gflops, "{:.2f}".format),
            _Column("ms/image", lambda row: row.cost.latency.get("p50"), "{:.0f}".format),
            _Column("epochs", lambda row: len(row.runs[0].epochs) or None, "{:.0f}".format),
            _Column("minutes", lambda row: row.cost.minutes, "{:.1f}".format),
            _Column("GiB", lambda row: row.cost.peak_memory, "{:.1f}".format),
        ],
    )


def class_grid(rows: Sequence[Row]) -> Grid:
    """AP of each class in points, one line a detector."""
    columns = [_Column(name, _class_ap(name), _points, emphasise=True) for name in classes_of(rows)]
    return _grid("AP of each class in points", rows, columns)


def original_grid(rows: Sequence[Row]) -> Grid:
    """The layout of the original experiment: metrics down, detectors across, fractions."""
    names: list[tuple[str, Callable[[Row], float | None]]] = [
        ("mAP", _metric("ap")),
        ("mAP_50", _metric("ap50")),
        ("mAP_75", _metric("ap75")),
        *((f"mAP_{label}", _class_ap(label)) for label in classes_of(rows)),
        ("mAP_small", _metric("ap_small")),
        ("mAP_medium", _metric("ap_medium")),
        ("mAP_large", _metric("ap_large")),
    ]
    best, cells = set(), []
    for r, (name, value) in enumerate(names):
        values = [value(row) for row in rows]
        cells.append((name, *(_shown(v, "{:.4f}".format) for v in values)))
        best |= {(r, c + 1) for c in _best(values)}
    return Grid(
        "The original experiment's layout (fractions)",
        ("metric", *(row.name for row in rows)),
        tuple(cells),
        frozenset(best),
    )


def csv_text(rows: Sequence[Row]) -> str:
    """One line for each run, fractions at full precision, names as in every json."""
    classes = classes_of(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    costs = ("parameters", "trainable", "gflops", "minutes", "peak_memory")
    writer.writerow(["model", "seed", *METRICS, *(f"ap_class_{name}" for name in classes), *costs])
    for row in rows:
        for run in row.runs:
            per_class = run.metrics.get("per_class", {})
            values = [
                run.entrant,
                run.seed,
                *(run.metrics.get(name) for name in METRICS),
                *(per_class.get(name) for name in classes),
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


@dataclass(frozen=True)
class _Column:
    header: str
    value: Callable[[Row], float | None]
    form: Callable[[float], str] | None = None
    emphasise: bool = False


def _metric(name: str) -> Callable[[Row], float | None]:
    return lambda row: row.metrics[name]


def _class_ap(name: str) -> Callable[[Row], float | None]:
    return lambda row: row.per_class.get(name)


def _grid(title: str, rows: Sequence[Row], columns: Sequence[_Column]) -> Grid:
    """Columns without a single number are left out."""
    values = [[column.value(row) for row in rows] for column in columns]
    kept = [
        (column, column_values)
        for column, column_values in zip(columns, values, strict=True)
        if any(value is not None for value in column_values)
    ]
    return Grid(
        title,
        ("model", *(column.header for column, _ in kept)),
        tuple(
            (row.name, *(_shown(vs[r], column.form or _points) for column, vs in kept))
            for r, row in enumerate(rows)
        ),
        frozenset(
            (r, c + 1) for c, (column, vs) in enumerate(kept) if column.emphasise for r in _best(vs)
        ),
    )


def _best(values: Sequence[float | None]) -> list[int]:
    """Where the largest values stand; nothing is best among equals or alone."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or max(known) == min(known):
        return []
    return [index for index, value in enumerate(values) if value == max(known)]


def _shown(value: float | None, form: Callable[[float], str]) -> str:
    return NOTHING if value is None else form(value)


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _count(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def _md(text: str) -> str:
    """Class names come from the data: they may hold bars, line breaks or markup."""
    text = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


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
