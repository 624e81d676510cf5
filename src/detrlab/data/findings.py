"""What can be wrong with a data set: the rules, which ``rules.txt`` lists, and the findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any, NamedTuple

from detrlab.errors import printable, shortened

MAX_LISTED = 1000
"""Findings of one rule that are listed; further ones are only counted."""

SEVERITIES = ("error", "warning", "note")
LEFT_OUT = "leaves it out"


class Rule(NamedTuple):
    """One property that the data should have; ``rules.txt`` says what the parts mean."""

    key: str
    severity: str
    title: str
    remedy: str
    repair: str = ""


def _rules() -> dict[str, Rule]:
    lines = files("detrlab.data").joinpath("rules.txt").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line[0] != "#"]
    return {row[0]: Rule(*row) for row in rows}


RULES = _rules()


class Finding(NamedTuple):
    """One place where a rule is broken.

    What it is about: the image's id, the annotation's id or line and its xywh box in pixels, and
    the split and id of the ``other`` of two images. ``detail`` has the offending values.
    """

    rule: str
    split: str
    file: str
    image: int | str | None = None
    annotation: int | str | None = None
    detail: str = ""
    other: tuple[str, int | str] | None = None
    box: tuple[float, float, float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the rule's severity, remedy and repair."""
        _, severity, _, remedy, repair = RULES[self.rule]
        values = {**self._asdict(), "severity": severity, "remedy": remedy, "repair": repair}
        del values["box"]  # may be NaN; the detail holds its values
        return {k: printable(v) if isinstance(v, str) else v for k, v in values.items()}

    def describe(self) -> str:
        """One line: file, annotation, values."""
        parts = [f"{self.split}:"] * bool(self.split) + [self.file]
        if self.image is not None:
            parts.append(f"image {self.image}")
        if self.annotation is not None:
            place = str(self.annotation)
            parts.append(f"annotation {place}" if place.isdigit() else place)
        line = " ".join(map(shortened, filter(None, parts)))
        return printable(": ".join(filter(None, [line, shortened(self.detail)])))


class Findings:
    """Findings by rule: all are counted, the first thousand of each rule are kept."""

    def __init__(self) -> None:
        self._listed: dict[str, list[Finding]] = {rule: [] for rule in RULES}
        self._counts: Counter[str] = Counter()

    def add(self, rule: str, split: str, file: str, *place: Any, **more: Any) -> None:
        """One finding; arguments as for ``Finding``."""
        self.extend(rule, 1, [Finding(rule, split, file, *place, **more)])

    def extend(self, rule: str, count: int, findings: Iterable[Finding]) -> None:
        """``count`` findings of one rule; the iterable is read as far as they are listed."""
        if count:
            self._counts[rule] += count
        for finding in findings:
            if len(self._listed[rule]) >= MAX_LISTED:
                break
            self._listed[rule].append(finding)

    def merge(self, other: Findings) -> None:
        """Add another's findings."""
        for rule, count in other._counts.items():
            self.extend(rule, count, other._listed[rule])

    def count(self, rule: str) -> int:
        """How many findings a rule has."""
        return self._counts[rule]

    def severities(self) -> dict[str, int]:
        """How many findings there are of each severity."""
        return {
            severity: sum(n for key, n in self._counts.items() if RULES[key].severity == severity)
            for severity in SEVERITIES
        }

    def by_rule(self) -> list[tuple[Rule, int, list[Finding]]]:
        """Rule, count and listed findings; errors first, then in the order of ``RULES``."""
        rules = sorted(RULES.values(), key=lambda rule: SEVERITIES.index(rule.severity))
        return [
            (rule, self._counts[rule.key], self._listed[rule.key])
            for rule in rules
            if rule.key in self._counts
        ]

    def __iter__(self) -> Iterator[Finding]:
        for _, _, listed in self.by_rule():
            yield from listed

    def __len__(self) -> int:
        return sum(self._counts.values())
