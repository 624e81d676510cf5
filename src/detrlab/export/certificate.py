"""What is known about an exported file, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from detrlab import files
from detrlab.export.agreement import Agreement, Difference

Precision = Literal["float32", "float16", "int8"]

TOLERANCE = (0.05, 1e-4)
"""Of ``float32``: of box edges (pixels of an image of 640) and scores."""
AP_LOSS = {"float16": 0.005, "int8": 0.01}
"""What fewer bits may cost: rounded weights move single boxes by pixels, and AP hardly."""
PACKAGES = ("detrlab", "torch", "onnx", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class Certificate:
    """What was measured about an exported file.

    Attributes:
        source: the checkpoint.
        file: its name.
        format: ``onnx``, ``openvino`` or ``torch``.
        precision: of the backbone and the encoder.
        sha256: of the file; of OpenVINO's the ``.xml``, and the ``.bin`` beside it.
        bytes: of all its files.
        input: how it is fed.
        images: where the compared images come from.
        agreement: its detections beside PyTorch's.
        reasons: why it is not accepted; empty if it is.
        first_difference: the first layer that differs, if it was looked for.
        ap: ``before`` (PyTorch), ``after``, ``images`` and ``data``; None without data.
        speed: milliseconds by runtime, of an image of ``size`` with ``threads``, in turn.
        versions: of the packages.
        machine: that measured.
    """

    source: str
    file: str
    format: str
    precision: Precision
    sha256: Mapping[str, str]
    bytes: int
    input: str
    images: str
    agreement: Agreement
    reasons: tuple[str, ...]
    first_difference: Difference | None
    ap: Mapping[str, Any] | None
    speed: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: str

    @property
    def accepted(self) -> bool:
        """Whether it may be used in PyTorch's place."""
        return not self.reasons

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``NAME.certificate.json`` and ``NAME.certificate.md``; returns their paths."""
        paths = [folder / f"{name}.certificate.{ending}" for ending in ("json", "md")]
        files.write_json(paths[0], {"accepted": self.accepted, **asdict(self)})
        files.write_text(paths[1], self.page())
        return paths

    def page(self) -> str:
        """As Markdown."""
        exact = self.precision == "float32"
        allowed = [f"{each:g}" if exact else "" for each in TOLERANCE]
        found = self.agreement
        lines = [
            f"# {self.file}: {'accepted' if self.accepted else 'refused'}",
            "",
            *(f"* **{reason}**" for reason in self.reasons),
            f"* Made from `{self.source}`, {self.format}, {self.precision}, "
            f"{self.bytes / 1e6:.1f} MB.",
            f"* Input: {self.input}.",
            *(f"* sha256 of `{name}`: `{digest}`" for name, digest in self.sha256.items()),
            "",
            "## Beside PyTorch",
            "",
            f"{found.compared} detections that score at least {found.least_score:.3g} in "
            f"{found.images} images ({self.images}); {found.lost} of them have no counterpart.",
            "",
            "| | worst difference | allowed |",
            "|---|---:|---:|",
            f"| box edge, pixels of an image of 640 | {found.box:.4f} | {allowed[0]} |",
            f"| score | {found.score:.6f} | {allowed[1]} |",
        ]
        if found.unstable:
            lines += [
                "",
                f"{found.unstable} more differ by up to {found.unstable_box:.3f} pixels: PyTorch "
                "itself moves these at least half as far in double precision, or when the last "
                "bits of the pixels change.",
            ]
        if self.first_difference is not None:
            d = self.first_difference
            lines += [
                "",
                f"The first layer that differs is `{d.module}` (value `{d.value}`), by "
                f"{d.worst:.2g} of its largest number.",
            ]
        if self.ap is not None:
            lines += [
                "",
                f"AP on {self.ap['images']} images of {self.ap['data']}: "
                f"{100 * self.ap['before']:.2f} in PyTorch, {100 * self.ap['after']:.2f} here"
                + ("." if exact else f"; {100 * AP_LOSS[self.precision]:g} less is allowed."),
            ]
        height, width = self.speed["size"]
        lines += [
            "",
            "## Speed",
            "",
            f"One image of {width} x {height}, {self.speed['threads']} threads, in turn, "
            f"{self.speed['rounds']} rounds; {self.machine}.",
            "",
            "| | median ms | 90 % below |",
            "|---|---:|---:|",
            *(
                f"| {name} | {row['p50_ms']:.1f} | {row['p90_ms']:.1f} |"
                for name, row in self.speed["rows"].items()
            ),
            "",
            "## Versions",
            "",
            ", ".join(f"{name} {number}" for name, number in self.versions.items()),
        ]
        return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
