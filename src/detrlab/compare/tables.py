"""The comparison as tables: terminal, Markdown, CSV, JSON, LaTeX, the original experiment's."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from detrlab.compare.results import METRICS, Row

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NOTHING = "–"
"""Shown where there is no number: no such objects, or not measured."""

SIZES = ("small", "medium", "large")

Values = Sequence[float | None]
Form = Callable[[float], str]


@dataclass(frozen=True)
class Grid:
    """A table of words, before it is formatted.

    Attributes:
        title: one line above it.
        headers: of the columns; the first column holds names.
        cells: one tuple for each row.
        best: (row, column) of the cells to emphasise.
    """

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
        """The names and some of the columns, nothing emphasised."""
        kept = (0, *chosen)
        cells = tuple(tuple(row[c] for c in kept) for row in self.cells)
        return Grid(self.title, tuple(self.headers[c] for c in kept), cells)

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

    def terminal(self, width: int = 80) -> RichTable:
        """A ``rich`` table for a terminal of so many columns.

        Rows and columns are exchanged where there are too many columns. Headers that are still
        too long take several lines, so that the numbers stay whole.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        room = self._room(width)
        words = [word for header in self.headers[1:] for word in re.split(r"[\s-]", header)]
        if room < max(map(len, words), default=0) and self.turned()._room(width) > room:
            return self.turned().terminal(width)
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for c, header in enumerate(self.headers):
            header = printable(header)
            if c:
                header = "\n".join(textwrap.wrap(header, max(4, room)))
            table.add_column(
                # Text, not markup: a class may be called "[red]".
                Text(header, overflow="fold"),
                justify="right" if c else "left",
                min_width=self._width(c) if c else None,
            )
        for r, row in enumerate(self.cells):
            table.add_row(
                *(
                    Text(printable(cell), style="bold" if (r, c) in self.best else "")
                    for c, cell in enumerate(row)
                )
            )
        return table

    def _room(self, width: int) -> int:
        """How wide each column after the first may be."""
        return (width - min(width // 2, self._width(0))) // max(1, len(self.headers) - 1) - 2

    def _width(self, column: int) -> int:
        from rich.cells import cell_len

        return max((cell_len(row[column]) for row in self.cells), default=0)


def printable(text: str) -> str:
    """Names come from the data: a terminal must not run control sequences in them."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def quality_grid(rows: Sequence[Row], intervals: Mapping[str, str] | None = None) -> Grid:
    """One row for each detector, average precision in points (0 to 100).

    Args:
        rows: of the comparison.
        intervals: for each name, the interval of its AP in words.
    """
    words = [(intervals or {}).get(row.name, NOTHING) for row in rows]
    names = {
        "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large",
    }  # fmt: skip
    return _grid(
        "Average precision in points (0 to 100); s, m, l: small, medium, large objects",
        rows,
        [
            _quality("AP", [row.metrics["ap"] for row in rows]),
            _Column("95 %", words),
            *(_quality(each, [row.metrics[name] for row in rows]) for each, name in names.items()),
        ],
    )


def cost_grid(rows: Sequence[Row]) -> Grid:
    """One row for each detector: what training and inference cost."""
    costs = [row.cost for row in rows]
    return _grid(
        "Cost",
        rows,
        [
            _Column("params", _words([cost.parameters for cost in costs], count)),
            _Column("GFLOPs", _words([cost.gflops for cost in costs], "{:.2f}".format)),
            _Column("ms/image", _words([cost.latency.get("p50") for cost in costs])),
            _Column("epochs", _words([len(row.runs[0].epochs) or None for row in rows])),
            _Column("minutes", _words([cost.minutes for cost in costs], "{:.1f}".format)),
            _Column("GiB", _words([cost.peak_memory for cost in costs], "{:.1f}".format)),
        ],
    )


def class_grid(rows: Sequence[Row]) -> Grid:
    """AP of each class in points, one row for each detector."""
    columns = [
        _quality(label, [row.per_class.get(label) for row in rows]) for label in classes_of(rows)
    ]
    return _grid("AP of each class in points", rows, columns)


def original_grid(rows: Sequence[Row]) -> Grid:
    """The layout of the original experiment: a row for each metric, fractions."""
    values: dict[str, Values] = {
        "mAP": [row.metrics["ap"] for row in rows],
        "mAP_50": [row.metrics["ap50"] for row in rows],
        "mAP_75": [row.metrics["ap75"] for row in rows],
        **{f"mAP_{each}": [row.per_class.get(each) for row in rows] for each in classes_of(rows)},
        **{f"mAP_{size}": [row.metrics[f"ap_{size}"] for row in rows] for size in SIZES},
    }
    columns = [_quality(name, each, "{:.4f}".format) for name, each in values.items()]
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


class _Column(NamedTuple):
    header: str
    words: Sequence[str]
    best: Sequence[int] = ()


def _quality(header: str, values: Values, form: Form | None = None) -> _Column:
    """A column whose largest value is emphasised, unless all are equal or there is only one."""
    known = {value for value in values if value is not None}
    best = [row for row, value in enumerate(values) if len(known) > 1 and value == max(known)]
    return _Column(header, _words(values, form or (lambda value: f"{100 * value:.1f}")), best)


def _words(values: Values, form: Form = "{:.0f}".format) -> list[str]:
    return [NOTHING if value is None else form(value) for value in values]


def _grid(
    title: str,
    rows: Sequence[Row],
    columns: Sequence[_Column],
    *,
    corner: str = "model",
    complete: bool = False,
) -> Grid:
    """A table with one row for each detector; columns that hold nothing are left out."""
    kept = [each for each in columns if complete or any(word != NOTHING for word in each.words)]
    names = [row.name for row in rows]
    return Grid(
        title,
        (corner, *(column.header for column in kept)),
        tuple(zip(names, *(column.words for column in kept), strict=True)),
        frozenset((row, c) for c, column in enumerate(kept, start=1) for row in column.best),
    )


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
