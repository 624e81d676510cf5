"""Writers of COCO, YOLO and Pascal VOC folders."""

from __future__ import annotations

import json
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from detrlab.data.table import Table
from detrlab.errors import UserError, did_you_mean

FORMATS = ("coco", "yolo", "voc")


class Output(NamedTuple):
    """One split to be written.

    Attributes:
        table: its annotations.
        names: file name of each image, different for every image of the data set.
        image: the bytes of each image file.
    """

    table: Table
    names: list[str]
    image: Callable[[int], bytes]


def unique_names(files: Sequence[str]) -> list[str]:
    """The last part of each file name, made different where two are the same.

    Two names count as the same if only their endings differ: YOLO and VOC call the
    annotations after what stands before.
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


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which takes its place only when all is written.

    Raises:
        UserError: something is there already, or the folder cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: choose another folder, or delete it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def writer(name: str) -> Callable[[Path, Sequence[Output], Callable[[], None]], None]:
    """The writer of a format.

    Raises:
        UserError: there is none of this name; the closest is named.
    """
    writers = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}
    if name not in writers:
        raise UserError(f"unknown format {name!r}{did_you_mean(name, FORMATS)}")
    return writers[name]


def number(value: float) -> int | float:
    """Whole numbers without a decimal point."""
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)


def _write_images(folder: Path, output: Output, tick: Callable[[], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(output.names):
        (folder / name).write_bytes(output.image(i))
        tick()


def write_coco(folder: Path, outputs: Sequence[Output], tick: Callable[[], None]) -> None:
    """``annotations/instances_SPLIT.json`` beside ``SPLIT/``, as the official data lies."""
    (folder / "annotations").mkdir(parents=True)
    for output in outputs:
        document = output.table.coco_ground_truth()
        for image, name in zip(document["images"], output.names, strict=True):
            image["file_name"] = name
        for record in document["annotations"]:
            record["bbox"] = [number(value) for value in record["bbox"]]
            record["area"] = number(record["area"])
        split = output.table.name
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        _write_images(folder / split, output, tick)


def write_yolo(folder: Path, outputs: Sequence[Output], tick: Callable[[], None]) -> None:
    """``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``; crowd regions are left out.

    Twelve digits: a millionth of a pixel survives in any image that is read.
    """
    import yaml

    for output in outputs:
        table, split = output.table, output.table.name
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        _write_images(folder / "images" / split, output, tick)
        for i, name in enumerate(output.names):
            height, width = table.sizes[i].tolist()
            rows = slice(int(table.starts[i]), int(table.starts[i + 1]))
            lines = [
                f"{label} {(x + w / 2) / width:.12g} {(y + h / 2) / height:.12g} "
                f"{w / width:.12g} {h / height:.12g}\n"
                for label, (x, y, w, h), crowd in zip(
                    table.labels[rows].tolist(),
                    table.boxes[rows].tolist(),
                    table.crowd[rows].tolist(),
                    strict=True,
                )
                if not crowd
            ]
            path = labels / (posixpath.splitext(name)[0] + ".txt")
            path.write_text("".join(lines), encoding="utf-8")
    document: dict[str, Any] = {
        output.table.name: f"images/{output.table.name}" for output in outputs
    }
    document["names"] = dict(enumerate(outputs[0].table.classes))
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def write_voc(folder: Path, outputs: Sequence[Output], tick: Callable[[], None]) -> None:
    """``Annotations``, ``JPEGImages`` and ``ImageSets/Main``; crowd regions become difficult.

    Corners count pixels from 1 and belong to the box, as in the original devkit.
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
    page = ElementTree.Element("annotation")
    ElementTree.SubElement(page, "folder").text = "JPEGImages"
    ElementTree.SubElement(page, "filename").text = name
    size = ElementTree.SubElement(page, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for row in range(int(table.starts[i]), int(table.starts[i + 1])):
        x, y, w, h = table.boxes[row].tolist()
        thing = ElementTree.SubElement(page, "object")
        ElementTree.SubElement(thing, "name").text = table.classes[int(table.labels[row])]
        ElementTree.SubElement(thing, "pose").text = "Unspecified"
        ElementTree.SubElement(thing, "truncated").text = "0"
        ElementTree.SubElement(thing, "difficult").text = str(int(table.crowd[row]))
        box = ElementTree.SubElement(thing, "bndbox")
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
        for key, value in corners.items():
            ElementTree.SubElement(box, key).text = str(number(round(value, 6)))
    return page
