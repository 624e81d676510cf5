"""The model card of a detector on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from detrlab.errors import printable

LABELS = {
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small", "ap_medium": "AP medium",
    "ap_large": "AP large",
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """What a detector reached on images.

    Attributes:
        data: their name.
        split: which of them.
        images: their number; None where it is not known.
        metrics: COCO metrics by name, in [0, 1]; None where nothing can be judged.
        intervals: ends of the 95 % intervals, by the same names, where they were computed.
        licences: of the images, as the annotations state them.
    """

    data: str
    split: str
    images: int | None
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    licences: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """Everything that a card says.

    Attributes:
        repository: its name on the Hub.
        preset: the detector.
        classes: the name of each class.
        image_size: what ``--imgsz`` means for it, in pixels.
        threshold: the suggested score threshold.
        provenance: where the weights come from, in plain values.
        licence: of the weights, a name that the Hub knows; None where it was not stated.
        in_transformers: whether the repository can be loaded with transformers.
        judged: what it reached, if that is known.
        others: further files, such as an export and its certificate.
    """

    repository: str
    preset: str
    classes: Sequence[str]
    image_size: int
    threshold: float | None
    provenance: Mapping[str, Any]
    licence: str | None
    in_transformers: bool
    judged: Judged | None = None
    others: Sequence[str] = ()

    def text(self) -> str:
        """The contents of ``README.md``."""
        parts = [f"---\n{self._header()}---", f"# {self.repository}", self._about(), self._use()]
        parts += [self._data(), self._metrics(), self._licence()]
        if self.others:
            listed = "\n".join(f"* [{_plain(name)}]({_plain(name)})" for name in self.others)
            parts.append(f"## Further files\n\n{listed}")
        return "\n\n".join(part for part in parts if part) + "\n"

    def _header(self) -> str:
        values: dict[str, Any] = {
            "library_name": "transformers" if self.in_transformers else "detrlab",
            "pipeline_tag": "object-detection",
            "tags": ["object-detection", "detrlab", self.preset],
        }
        if self.licence is not None:
            values["license"] = self.licence
        if self.judged is not None and self.judged.metrics.get("ap") is not None:
            data, split = _plain(self.judged.data), _plain(self.judged.split)
            values["model-index"] = [
                {
                    "name": self.repository.rpartition("/")[2],
                    "results": [
                        {
                            "task": {"type": "object-detection"},
                            "dataset": {"name": data, "type": data, "split": split},
                            "metrics": [
                                {"type": name, "name": LABELS[name], "value": round(value, 4)}
                                for name, value in self.judged.metrics.items()
                                if name in LABELS and value is not None
                            ],
                        }
                    ],
                }
            ]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def _about(self) -> str:
        names = ", ".join(map(_plain, self.classes[:100]))
        more = f" and {len(self.classes) - 100} more" * (len(self.classes) > 100)
        return (
            f"An object detector, `{self.preset}`, for images of {self.image_size} px. It finds "
            f"{len(self.classes)} classes: {names}{more}."
        )

    def _use(self) -> str:
        lines = [
            "## Use",
            "```sh",
            "pip install detrlab",
            f"detrlab predict photo.jpg --model hf:{self.repository}",
            "```",
            "```python",
            "import detrlab",
            "",
            f'detector = detrlab.load("hf:{self.repository}")',
            'detector.predict("photo.jpg").save("found.jpg")',
            "```",
        ]
        if self.in_transformers:
            lines += [
                "Or with transformers:",
                "```python",
                "from transformers import pipeline",
                "",
                f'detect = pipeline("object-detection", model="{self.repository}")',
                'detect("photo.jpg")',
                "```",
            ]
        if self.threshold is not None:
            lines.append(f"Its own threshold is {self.threshold:.3g}.")
        return "\n".join(lines)

    def _data(self) -> str:
        rows = [f"* {_plain(name)}: {_plain(value)}" for name, value in self.provenance.items()]
        return "## Training\n\n" + "\n".join(rows) if rows else ""

    def _metrics(self) -> str:
        if self.judged is None:
            return "## Metrics\n\nNone are known."
        judged = self.judged
        many = "" if judged.images is None else f" ({judged.images:,} images)"
        lines = ["## Metrics", "", f"On {_plain(judged.data)}, {_plain(judged.split)}{many}:", ""]
        lines += ["| metric | value | 95 % interval |", "|---|---|---|"]
        for name, label in LABELS.items():
            value, ends = judged.metrics.get(name), judged.intervals.get(name)
            if value is not None:
                interval = "not computed" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
                lines.append(f"| {label} | {value:.3f} | {interval} |")
        if judged.intervals:
            lines += [
                "",
                "The intervals are over images: of these weights, not of another training.",
            ]
        return "\n".join(lines)

    def _licence(self) -> str:
        weights = "not stated" if self.licence is None else self.licence
        lines = [f"## Licence\n\nOf the weights: {weights}."]
        if self.judged is not None and self.judged.licences:
            named = "; ".join(map(_plain, self.judged.licences))
            lines.append(f"Of the images, as their annotations say: {named}.")
        return " ".join(lines)


def _plain(value: Any) -> str:
    """Text from files, without what Markdown would read as more than text."""
    text = printable(str(value))[:200]
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text)
