"""What can be wrong with a data set: the rules, and the findings that break them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]

MAX_LISTED = 1000
"""Findings of one rule that are kept one by one; the rest is only counted."""


class Rule(NamedTuple):
    """One thing that should hold.

    Attributes:
        key: the name that scripts see.
        severity: ``error`` spoils training or evaluation, ``warning`` probably does,
            ``note`` is worth knowing.
        title: what is wrong, in a few words.
        remedy: what to do about it.
        repair: what ``check --fix`` does about it; empty when it can do nothing.
    """

    key: str
    severity: Severity
    title: str
    remedy: str
    repair: str = ""


_LEFT_OUT = "leaves it out"

RULES: dict[str, Rule] = {
    rule.key: rule
    for rule in (
        # The annotation file itself.
        Rule("record-broken", "error", "entry is not what the format asks for",
             "correct or delete the entry", _LEFT_OUT),
        Rule("value-text", "warning", "number written as text",
             "write the number without quotes", "writes the number"),
        Rule("file-broken", "error", "annotation file cannot be read",
             "export it again or delete it", "leaves the file out"),
        Rule("line-broken", "error", "line is not 'class x y width height'",
             "correct or delete the line", _LEFT_OUT),
        Rule("polygon", "note", "polygon where a box was expected; its extent is used",
             "nothing to do", "writes the box"),
        # Ids and categories.
        Rule("image-id-duplicate", "error", "several images have one id",
             "give every image its own id", "leaves all of them out: their boxes are ambiguous"),
        Rule("image-repeated", "warning", "the same file is listed twice with one id",
             "delete one entry", "keeps the first entry"),
        Rule("image-id-text", "note", "image ids are text",
             "some evaluators refuse text ids: number the images", "numbers the images"),
        Rule("annotation-id-duplicate", "warning", "annotation ids repeat or are missing",
             "number the annotations", "numbers the annotations"),
        Rule("image-unknown", "error", "annotation of an image that is not listed",
             "list the image or delete the annotation", _LEFT_OUT),
        Rule("category-unknown", "error", "annotation of a category that is not declared",
             "declare the category or correct the id (off by one?)", _LEFT_OUT),
        Rule("category-name-duplicate", "error", "several categories have one name",
             "merge or rename them", "adds the id to the name"),
        Rule("category-mismatch", "error", "splits disagree on category ids",
             "use one list of categories in every split", "writes one list"),
        Rule("category-placeholder", "note", "category without boxes that only names a group",
             "nothing to do: it is left out", "leaves it out"),
        Rule("class-missing", "warning", "class has no boxes in a split",
             "add images of it or remove the class"),
        Rule("class-rare", "note", "class is rare",
             "expect a noisy score for it; add images if it matters"),
        # Files.
        Rule("file-missing", "error", "image file is not there",
             "put the file back or delete the image's entry", _LEFT_OUT),
        Rule("file-unsafe", "error", "file name leads outside of the data folder",
             "write the name relative to the data folder", _LEFT_OUT),
        Rule("file-link", "error", "link leads outside of the data folder",
             "copy the file into the folder, or set DETRLAB_LINKS=follow if you trust it",
             _LEFT_OUT),
        Rule("file-shared", "warning", "several entries name the same image file",
             "merge them into one", "merges them"),
        Rule("file-unlisted", "note", "image file without an entry in the annotations",
             "annotate it, or list it without boxes if it shows none"),
        Rule("label-orphan", "note", "label file without an image",
             "delete it or put the image back", _LEFT_OUT),
        # Pixels.
        Rule("image-unreadable", "error", "image file cannot be decoded",
             "replace or delete the file", _LEFT_OUT),
        Rule("image-truncated", "error", "image file is cut short",
             "copy it again from its source", _LEFT_OUT),
        Rule("image-mislabelled", "warning", "file ending belies the format",
             "rename the file", "writes a file whose ending is right"),
        Rule("image-size", "error", "declared size is not the file's",
             "correct width and height, and look whether the boxes fit",
             "writes the file's size; scales the boxes where they fit the declared one only"),
        Rule("image-orientation", "warning", "image is turned by an EXIF tag",
             "write the pixels upright", "writes the picture that the boxes belong to, untagged"),
        Rule("image-cmyk", "warning", "image is in CMYK",
             "convert it to RGB", "converts it"),
        Rule("image-16bit", "warning", "image has 16 bits per channel; the upper 8 are used",
             "convert it to 8 bits", "converts it"),
        Rule("image-alpha", "note", "image has transparency, which is dropped",
             "convert it to RGB", "converts it"),
        Rule("image-animated", "note", "file holds several pictures; the first is used",
             "save the first one alone", "writes the first one"),
        # Boxes.
        Rule("box-not-finite", "error", "box is NaN or infinite",
             "correct or delete the annotation", _LEFT_OUT),
        Rule("box-empty", "error", "box has no width or no height",
             "correct or delete the annotation", _LEFT_OUT),
        Rule("box-off-image", "error", "box lies outside of the image",
             "correct or delete the annotation", _LEFT_OUT),
        Rule("box-over-edge", "warning", "box runs over the edge of the image",
             "clamp it to the image", "clamps it"),
        Rule("box-duplicate", "warning", "same box and class twice in one image",
             "delete one", "keeps the first"),
        Rule("box-two-classes", "warning", "same box with two classes",
             "decide for one class"),
        Rule("box-whole-image", "warning", "box covers the whole image",
             "look whether it is meant as a box"),
        Rule("box-scale", "error", "boxes look like fractions, not pixels",
             "multiply them by the image's width and height", "multiplies them"),
        Rule("box-corners", "error", "boxes look like x0 y0 x1 y1, not x y width height",
             "write width and height", "converts them"),
        Rule("box-vanishes", "warning", "object is less than 2 pixels at the training size",
             "train at a larger --imgsz, or cut the images into tiles"),
        Rule("too-many-objects", "warning", "image has more objects than the detector has queries",
             "give the detector more: --set model.num_queries=300"),
        # Pictures that are the same.
        Rule("duplicate-exact", "warning", "same picture twice in one split",
             "delete one", "keeps the first"),
        Rule("duplicate-near", "note", "nearly the same picture twice in one split",
             "look whether both are needed"),
        Rule("leak-exact", "error", "same picture in two splits",
             "delete it from the training split: the score would be of what was learnt by heart",
             "takes it out of the training split"),
        Rule("leak-near", "warning", "nearly the same picture in two splits",
             "keep pictures of one scene in one split",
             "takes it out of the training split"),
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
        other: split and id of the other image, where the finding is about two.
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
        return {
            "rule": self.rule,
            "severity": rule.severity,
            "split": self.split,
            "file": self.file,
            "image": self.image,
            "annotation": self.annotation,
            "detail": self.detail,
            "other": list(self.other) if self.other else None,
            "remedy": rule.remedy,
            "repair": rule.repair,
        }


class Findings:
    """Findings by rule: every one counted, the first thousand of each rule kept."""

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
        """``count`` findings of one rule, of which only the first few are looked at."""
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
        """Take over another's findings."""
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
        """Rule, count and listed findings, errors first, in the order of ``RULES``."""
        rank = {"error": 0, "warning": 1, "note": 2}
        order = {key: i for i, key in enumerate(RULES)}
        keys = sorted(self._counts, key=lambda key: (rank[RULES[key].severity], order[key]))
        return [(RULES[key], self._counts[key], self._listed[key]) for key in keys]

    def __iter__(self) -> Iterator[Finding]:
        for _, _, listed in self.by_rule():
            yield from listed

    def __len__(self) -> int:
        return sum(self._counts.values())
