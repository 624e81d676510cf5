"""What can be wrong with a data set: the rules, and the findings of a check."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]

MAX_LISTED = 1000
"""Findings of one rule that are listed; further ones are only counted."""


class Rule(NamedTuple):
    """One property that the data should have.

    Attributes:
        key: the name in JSON output.
        severity: ``error`` spoils training or evaluation, ``warning`` probably does,
            ``note`` is for information.
        title: what is wrong, in a few words.
        remedy: what to do about it.
        repair: what ``check --fix`` does about it; empty when it can do nothing.
    """

    key: str
    severity: Severity
    title: str
    remedy: str
    repair: str = ""


LEFT_OUT = "leaves it out"

RULES: dict[str, Rule] = {
    rule.key: rule
    for rule in (
        # The annotation file itself.
        Rule("record-broken", "error", "entry does not match the format",
             "correct or delete the entry", LEFT_OUT),
        Rule("value-text", "warning", "number written as text",
             "write the number without quotes", "writes the number"),
        Rule("file-broken", "error", "annotation file cannot be read",
             "export it again or delete it", LEFT_OUT),
        Rule("line-broken", "error", "line is not 'class x y width height'",
             "correct or delete the line", LEFT_OUT),
        Rule("polygon", "note", "polygon instead of a box; its bounding box is used",
             "nothing to do", "writes the box"),
        # Ids and categories.
        Rule("image-id-duplicate", "error", "several images have the same id",
             "give every image its own id; their boxes are ambiguous", LEFT_OUT),
        Rule("image-repeated", "warning", "the same file is listed twice with the same id",
             "delete one entry", "keeps the first entry"),
        Rule("image-id-text", "note", "image ids are text",
             "some evaluators refuse text ids: number the images", "numbers the images"),
        Rule("annotation-id-duplicate", "warning", "annotation ids are repeated or missing",
             "number the annotations", "numbers the annotations"),
        Rule("image-unknown", "error", "annotation of an image that is not listed",
             "list the image or delete the annotation", LEFT_OUT),
        Rule("category-unknown", "error", "annotation of a category that is not declared",
             "declare the category or correct the id (off by one?)", LEFT_OUT),
        Rule("category-name-duplicate", "error", "several categories have the same name",
             "merge or rename them", "adds the id to the name"),
        Rule("category-mismatch", "error", "splits disagree on category ids",
             "use the same list of categories in every split", "writes the same list"),
        Rule("category-placeholder", "note", "category without boxes that only names a group",
             "nothing to do: it is left out", LEFT_OUT),
        Rule("class-missing", "warning", "class has no boxes in a split",
             "add images of it or remove the class"),
        Rule("class-rare", "note", "class is rare",
             "expect a noisy score for it; add images if it matters"),
        # Files.
        Rule("file-missing", "error", "image file not found",
             "put the file back or delete the image's entry", LEFT_OUT),
        Rule("file-unsafe", "error", "file name points outside of the data folder",
             "write the name relative to the data folder", LEFT_OUT),
        Rule("file-link", "error", "file is behind a link that leaves the data folder",
             "set DETRLAB_LINKS=follow to follow links, or copy the files into the folder",
             LEFT_OUT),
        Rule("file-shared", "warning", "several entries name the same image file",
             "merge them into one", "merges them"),
        Rule("file-unlisted", "note", "image file without an entry in the annotations",
             "annotate it, or list it without boxes if it shows no objects"),
        Rule("label-orphan", "note", "label file without an image",
             "delete it or put the image back", LEFT_OUT),
        # Pixels.
        Rule("image-unreadable", "error", "image file cannot be decoded",
             "replace or delete the file", LEFT_OUT),
        Rule("image-truncated", "error", "image file is truncated",
             "copy it again from its source", LEFT_OUT),
        Rule("image-mislabelled", "warning", "extension does not match the file's format",
             "rename the file", "writes the file with the right extension"),
        Rule("image-size", "error", "declared size is not the file's size",
             "correct width and height, and check that the boxes fit",
             "writes the file's size; scales boxes that only fit the declared size"),
        Rule("image-orientation", "warning", "image has an EXIF rotation tag",
             "store the pixels upright", "writes the image that the boxes fit, without the tag"),
        Rule("image-cmyk", "warning", "image is in CMYK",
             "convert it to RGB", "converts it"),
        Rule("image-16bit", "warning", "image has 16 bits per channel; the upper 8 are used",
             "convert it to 8 bits", "converts it"),
        Rule("image-alpha", "note", "image has transparency, which is dropped",
             "convert it to RGB", "converts it"),
        Rule("image-animated", "note", "file holds several images; the first is used",
             "save the first one alone", "writes the first one"),
        # Boxes.
        Rule("box-not-finite", "error", "box is NaN or infinite",
             "correct or delete the annotation", LEFT_OUT),
        Rule("box-empty", "error", "box has no width or no height",
             "correct or delete the annotation", LEFT_OUT),
        Rule("box-off-image", "error", "box lies outside of the image",
             "correct or delete the annotation", LEFT_OUT),
        Rule("box-over-edge", "warning", "box extends beyond the edge of the image",
             "clamp it to the image", "clamps it"),
        Rule("box-duplicate", "warning", "same box and class twice in one image",
             "delete one", "keeps the first"),
        Rule("box-two-classes", "warning", "same box with two classes",
             "decide for one class"),
        Rule("box-whole-image", "warning", "box covers the whole image",
             "check whether it is meant as a box"),
        Rule("box-scale", "error", "boxes look like fractions, not pixels",
             "multiply them by the image's width and height", "multiplies them"),
        Rule("box-corners", "error", "boxes look like x0 y0 x1 y1, not x y width height",
             "write width and height", "converts them"),
        Rule("box-vanishes", "warning", "object is less than 2 pixels at the training size",
             "train at a larger --imgsz, or cut the images into tiles"),
        Rule("too-many-objects", "warning", "image has more objects than the detector has queries",
             "give the detector more: --set model.num_queries=300"),
        # Duplicates.
        Rule("duplicate-exact", "warning", "same image twice in one split",
             "delete one", "keeps the first"),
        Rule("duplicate-near", "note", "nearly the same image twice in one split",
             "check whether both are needed"),
        Rule("leak-exact", "error", "same image in two splits",
             "delete it from the training split: the score would reward memorized images",
             "removes it from the training split"),
        Rule("leak-near", "warning", "nearly the same image in two splits",
             "keep images of one scene in one split", "removes it from the training split"),
    )
}  # fmt: skip


class Finding(NamedTuple):
    """One place where a rule is broken.

    Attributes:
        rule: key of the rule.
        split: the split, or empty.
        file: the image or annotation file.
        image: the image's id, if it is about one.
        annotation: the annotation's id or line, if it is about one.
        detail: the offending values.
        other: split and id of the other image, if it is about two.
        box: x, y, width and height of the annotation in pixels, if it is about one.
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
        rule = RULES[self.rule]
        values = {
            **self._asdict(),
            "other": list(self.other) if self.other else None,
            "severity": rule.severity,
            "remedy": rule.remedy,
            "repair": rule.repair,
        }
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
        self._listed: dict[str, list[Finding]] = {}
        self._counts: dict[str, int] = {}

    def add(
        self,
        rule: str,
        split: str,
        file: str,
        image: int | str | None = None,
        annotation: int | str | None = None,
        detail: str = "",
    ) -> None:
        """One finding."""
        self.extend(rule, 1, [Finding(rule, split, file, image, annotation, detail)])

    def extend(self, rule: str, count: int, findings: Iterable[Finding]) -> None:
        """``count`` findings of one rule; the iterable is read as far as they are listed."""
        assert rule in RULES, rule
        if not count:
            return
        listed = self._listed.setdefault(rule, [])
        self._counts[rule] = self._counts.get(rule, 0) + count
        for finding in findings:
            if len(listed) >= MAX_LISTED:
                break
            listed.append(finding)

    def merge(self, other: Findings) -> None:
        """Add another's findings."""
        for rule, listed in other._listed.items():
            self.extend(rule, other._counts[rule], listed)

    def count(self, rule: str) -> int:
        """How many findings a rule has."""
        return self._counts.get(rule, 0)

    def severities(self) -> dict[Severity, int]:
        """How many findings there are of each severity."""
        totals: dict[Severity, int] = {"error": 0, "warning": 0, "note": 0}
        for rule, count in self._counts.items():
            totals[RULES[rule].severity] += count
        return totals

    def by_rule(self) -> list[tuple[Rule, int, list[Finding]]]:
        """Rule, count and listed findings; errors first, then in the order of ``RULES``."""
        rank = {"error": 0, "warning": 1, "note": 2}
        rules = sorted(RULES.values(), key=lambda rule: rank[rule.severity])
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


def shortened(text: str, length: int = 300) -> str:
    """Both ends of a text that is too long to print."""
    return text if len(text) <= length else f"{text[: length - 60]} ... {text[-50:]}"


def excerpt(value: Any, length: int = 40) -> str:
    """The start of any value's repr; the time and memory it takes do not depend on the value."""
    bounded = reprlib.Repr()
    bounded.maxlevel, bounded.maxstring = 3, length
    text = bounded.repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def printable(text: str) -> str:
    """The text without control characters and invalid Unicode, which terminals would obey."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
