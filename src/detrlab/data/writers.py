"""Writers of data sets in COCO's, YOLO's and Pascal VOC's format, and of shards."""

from __future__ import annotations

import json
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detrlab.data.shards import write_shards
from detrlab.data.table import Table
from detrlab.errors import UserError, did_you_mean

FORMATS = ("coco", "yolo", "voc", "shards")

IMAGE_FOLDERS = {"coco": "{}", "yolo": "images/{}", "voc": "JPEGImages"}
"""Folder of a split's images, by format."""


class Output(NamedTuple):
    """One split to write: its table, a unique name for each image, and each file's bytes."""

    table: Table
    names: list[str]
    image: Callable[[int], bytes]


def unique_names(files: Sequence[str]) -> list[str]:
    """The last part of each file name, made unique.

    Names that differ only in their extension are not unique: YOLO and VOC name the annotation
    file after the part before it.
    """
    taken: set[str] = set()
    names = []
    for file in files:
        stem, ending = posixpath.splitext(posixpath.basename(file))
        stem = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in stem) or "_"
        candidate, number = stem, 1
        while candidate.lower() in taken:
            number += 1
            candidate = f"{stem}-{number}"
        taken.add(candidate.lower())
        names.append(candidate + ending)
    return names


def write(
    name: str,
    folder: Path,
    outputs: Sequence[Output],
    progress: Callable[[int, int], None] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a data set to a new folder, which appears complete or not at all.

    Args:
        name: one of ``FORMATS``.
        folder: the new folder.
        outputs: its splits.
        progress: called with images written and in all.
        texts: further text files, by name.

    Raises:
        UserError: an unknown format, or the folder exists or cannot be written.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}{did_you_mean(name, FORMATS)}")
    texts = dict(texts or {})
    if name == "yolo":
        texts["data.yaml"] = _yolo_yaml([output.table for output in outputs])
    total, count = sum(len(output.names) for output in outputs), 0

    def done() -> None:
        nonlocal count
        count += 1
        if progress is not None:
            progress(count, total)

    with new_folder(folder) as temporary:
        for output in outputs:
            if name == "shards":
                write_shards(temporary / output.table.name, *output, done)
                continue
            annotations = {"coco": _coco, "yolo": _yolo, "voc": _voc}[name]
            images = temporary / IMAGE_FOLDERS[name].format(output.table.name)
            images.mkdir(parents=True, exist_ok=True)
            for i, file in enumerate(output.names):
                (images / file).write_bytes(output.image(i))
                done()
            texts.update(annotations(output.table, output.names))
        for file, text in texts.items():
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            (temporary / file).write_text(text, encoding="utf-8")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which is given its name when the block succeeds, and else removed.

    Raises:
        UserError: there is such a folder with files in it, or it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: choose another folder, or delete it first")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _number(value: float) -> int | float:
    """A whole number without a decimal point."""
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)


def _coco(table: Table, names: list[str]) -> dict[str, str]:
    """``annotations/instances_SPLIT.json`` beside ``SPLIT/``, as the official data."""
    document = table.coco_ground_truth()
    for image, name in zip(document["images"], names, strict=True):
        image["file_name"] = name
    for record in document["annotations"]:
        record["bbox"] = [_number(value) for value in record["bbox"]]
        record["area"] = _number(record["area"])
    return {f"annotations/instances_{table.name}.json": json.dumps(document, allow_nan=False)}


def _yolo(table: Table, names: list[str]) -> dict[str, str]:
    """``labels/SPLIT`` beside ``images/SPLIT``; crowd regions are left out.

    Twelve digits keep a millionth of a pixel in any image that can be read.
    """
    sides = table.sizes[table.owners(), ::-1]
    centers = (table.boxes[:, :2] + table.boxes[:, 2:] / 2) / sides
    columns = np.column_stack([table.labels, centers, table.boxes[:, 2:] / sides]).tolist()
    lines = [f"{row[0]:.0f} " + " ".join(f"{v:.12g}" for v in row[1:]) + "\n" for row in columns]
    pages = {}
    for i, name in enumerate(names):
        rows = range(int(table.starts[i]), int(table.starts[i + 1]))
        text = "".join(lines[row] for row in rows if not table.crowd[row])
        pages[f"labels/{table.name}/{posixpath.splitext(name)[0]}.txt"] = text
    return pages


def _yolo_yaml(tables: list[Table]) -> str:
    import yaml

    document: dict[str, object] = {table.name: f"images/{table.name}" for table in tables}
    document["names"] = dict(enumerate(tables[0].classes))
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _voc(table: Table, names: list[str]) -> dict[str, str]:
    """``Annotations``, ``JPEGImages`` and ``ImageSets/Main``; crowd regions become difficult.

    Corners count pixels from 1 and both belong to the box, as in the original devkit.
    """
    stems = [posixpath.splitext(name)[0] for name in names]
    pages = {f"ImageSets/Main/{table.name}.txt": "".join(f"{stem}\n" for stem in stems)}
    for i, (stem, name) in enumerate(zip(stems, names, strict=True)):
        height, width = table.sizes[i].tolist()
        page = _tree("annotation", folder="JPEGImages", filename=name)
        page.append(_tree("size", width=width, height=height, depth=3))
        for row in range(int(table.starts[i]), int(table.starts[i + 1])):
            label, crowd = table.classes[int(table.labels[row])], int(table.crowd[row])
            page.append(_tree("object", name=label, pose="Unspecified", truncated=0,
                              difficult=crowd))  # fmt: skip
            x, y, w, h = table.boxes[row].tolist()
            corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
            box = {key: _number(round(value, 6)) for key, value in corners.items()}
            page[-1].append(_tree("bndbox", **box))
        ElementTree.indent(page)
        pages[f"Annotations/{stem}.xml"] = ElementTree.tostring(page, encoding="unicode")
    return pages


def _tree(tag: str, **texts: object) -> ElementTree.Element:
    """An element with one child for each text."""
    element = ElementTree.Element(tag)
    for key, text in texts.items():
        ElementTree.SubElement(element, key).text = str(text)
    return element
