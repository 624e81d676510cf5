"""Writers of data sets in COCO's, YOLO's and Pascal VOC's format."""

from __future__ import annotations

import json
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from detrlab.data.table import Table
from detrlab.errors import UserError, did_you_mean


class Output(NamedTuple):
    """One split to write.

    Attributes:
        table: its annotations.
        names: file name of each image, different for every image of the data set.
        image: the bytes of each image file.
    """

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
        name: the format: ``coco``, ``yolo`` or ``voc``.
        folder: the new folder.
        outputs: its splits.
        progress: called with images written and in all.
        texts: further text files, by name.

    Raises:
        UserError: an unknown format, or the folder exists or cannot be written.
    """
    writers = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}
    if name not in writers:
        raise UserError(f"unknown format {name!r}{did_you_mean(name, writers)}")
    total, done = sum(len(output.names) for output in outputs), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with _new_folder(folder) as temporary:
        writers[name](temporary, outputs, tick)
        for file, text in (texts or {}).items():
            (temporary / file).write_text(text, encoding="utf-8")


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
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


def _write_images(folder: Path, output: Output, tick: Callable[[], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(output.names):
        (folder / name).write_bytes(output.image(i))
        tick()


def write_coco(folder: Path, outputs: Sequence[Output], tick: Callable[[], None]) -> None:
    """``annotations/instances_SPLIT.json`` beside ``SPLIT/``, as the official data."""
    (folder / "annotations").mkdir(parents=True)
    for output in outputs:
        document = output.table.coco_ground_truth()
        for image, name in zip(document["images"], output.names, strict=True):
            image["file_name"] = name
        for record in document["annotations"]:
            record["bbox"] = [_number(value) for value in record["bbox"]]
            record["area"] = _number(record["area"])
        split = output.table.name
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        _write_images(folder / split, output, tick)


def write_yolo(folder: Path, outputs: Sequence[Output], tick: Callable[[], None]) -> None:
    """``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``; crowd regions are left out.

    Twelve digits keep a millionth of a pixel in any image that can be read.
    """
    import yaml

    for output in outputs:
        table, split = output.table, output.table.name
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        _write_images(folder / "images" / split, output, tick)
        sides = table.sizes[table.owners(), ::-1]
        centers = (table.boxes[:, :2] + table.boxes[:, 2:] / 2) / sides
        columns = np.column_stack([table.labels, centers, table.boxes[:, 2:] / sides])
        for i, name in enumerate(output.names):
            rows = slice(int(table.starts[i]), int(table.starts[i + 1]))
            path = labels / (posixpath.splitext(name)[0] + ".txt")
            np.savetxt(path, columns[rows][~table.crowd[rows]], fmt="%d" + 4 * " %.12g")
    document: dict[str, Any] = {
        output.table.name: f"images/{output.table.name}" for output in outputs
    }
    document["names"] = dict(enumerate(outputs[0].table.classes))
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def write_voc(folder: Path, outputs: Sequence[Output], tick: Callable[[], None]) -> None:
    """``Annotations``, ``JPEGImages`` and ``ImageSets/Main``; crowd regions become difficult.

    Corners count pixels from 1 and both belong to the box, as in the original devkit.
    """
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for output in outputs:
        _write_images(folder / "JPEGImages", output, tick)
        stems = [posixpath.splitext(name)[0] for name in output.names]
        for i, stem in enumerate(stems):
            tree = ElementTree.ElementTree(_voc_page(output.table, i, output.names[i]))
            ElementTree.indent(tree)
            tree.write(folder / "Annotations" / f"{stem}.xml", encoding="utf-8")
        text = "".join(f"{stem}\n" for stem in stems)
        (lists / f"{output.table.name}.txt").write_text(text, encoding="utf-8")


def _voc_page(table: Table, i: int, name: str) -> ElementTree.Element:
    height, width = table.sizes[i].tolist()
    size = _tree("size", {"width": str(width), "height": str(height), "depth": "3"})
    page = _tree("annotation", {"folder": "JPEGImages", "filename": name})
    page.append(size)
    for row in range(int(table.starts[i]), int(table.starts[i + 1])):
        x, y, w, h = table.boxes[row].tolist()
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
        thing = {
            "name": table.classes[int(table.labels[row])],
            "pose": "Unspecified",
            "truncated": "0",
            "difficult": str(int(table.crowd[row])),
        }
        page.append(_tree("object", thing))
        box = {key: str(_number(round(value, 6))) for key, value in corners.items()}
        page[-1].append(_tree("bndbox", box))
    return page


def _tree(tag: str, texts: dict[str, str]) -> ElementTree.Element:
    """An element with one child for each text."""
    element = ElementTree.Element(tag)
    for key, text in texts.items():
        ElementTree.SubElement(element, key).text = text
    return element
