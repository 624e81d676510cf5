"""Large data sets as they were opened last: their columns in one mapped file of the cache folder.

The file's name holds everything that the result depends on, so a changed data set has another one.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab import __version__
from detrlab.data.coco import LARGE
from detrlab.data.images import Names
from detrlab.data.mapped import load_columns, save_columns
from detrlab.data.pictures import FilePictures, ZipPictures
from detrlab.data.store import Archive, Store
from detrlab.data.table import PER_BOX, Table
from detrlab.download import cache_folder
from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.data.sources import DataSet

READER = 1
"""Raised with every change of what is read from the same files."""

_COLUMNS = ("image_ids", "sizes", "starts", *PER_BOX)


def place(store: Store, source: str, variant: str) -> Path | None:
    """The file for a data set opened in one way; None if no annotation file is large.

    Args:
        store: its files. Names of all of them count, and sizes and times of annotation files.
        source: what the user named.
        variant: how it is opened, such as the seed of a split.
    """
    names = sorted(name for name in store.names if name.lower().endswith(".json"))
    try:
        if isinstance(store, Archive):
            sizes = [store.members[name].file_size for name in names]
            states = [store.root.stat()]
        else:
            states = [(store.root / name).stat() for name in names]
            sizes = [state.st_size for state in states]
    except OSError:  # one was deleted just now: what reads it says so
        return None
    if max(sizes, default=0) < LARGE:
        return None
    opened = [source, str(store.root.resolve()), variant]
    depends = [
        __version__, READER, names, [(state.st_size, state.st_mtime_ns) for state in states],
        store.refused, _digest("\0".join(sorted(store.names))),
    ]  # fmt: skip
    first, second = (_digest(json.dumps(each))[:24] for each in (opened, depends))
    return cache_folder() / "tables" / f"{first}-{second}.columns"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def remember(path: Path, data: DataSet) -> None:
    """Keep a data set; earlier states of it are removed. Without room for it, nothing happens."""
    tables = [data.train] + [t for t in (data.val, data.test) if t not in (None, data.train)]
    roles = {
        role: tables.index(t) for role in ("train", "val", "test") if (t := getattr(data, role))
    }
    values = {
        "roles": roles,
        "tables": [(t.name, t.classes, t.category_ids) for t in tables],
        "data": {key: getattr(data, key) for key in ("name", "notes", "licences", "split_off")},
    }
    columns: dict[str, Any] = {}
    for k, table in enumerate(tables):
        columns |= {f"{k}.{key}": getattr(table, key) for key in _COLUMNS}
        pictures = table.pictures
        assert isinstance(pictures, FilePictures | ZipPictures)
        columns |= {f"{k}.ends": pictures.names.ends, f"{k}.letters": pictures.names.letters}
        if isinstance(pictures, ZipPictures):
            columns[f"{k}.where"] = pictures.where
    if any(column.dtype.hasobject for column in columns.values()):
        return  # image ids that are both numbers and text
    with suppress(UserError, OSError):
        save_columns(path, values, columns)
        for other in path.parent.glob(f"{path.name.split('-')[0]}-*.columns"):
            if other != path:
                other.unlink()


def recall(path: Path, store: Store) -> dict[str, Any] | None:
    """The fields of a data set that was kept; None if there is none, or it is damaged."""
    if (found := load_columns(path)) is None:
        return None
    values, columns = found
    tables = []
    for k, (name, classes, category_ids) in enumerate(values["tables"]):
        names = Names.of(columns[f"{k}.ends"], columns[f"{k}.letters"])
        where = columns.get(f"{k}.where")
        root = str(store.root)
        pictures = FilePictures(root, names) if where is None else ZipPictures(root, names, where)
        own = {key: columns[f"{k}.{key}"] for key in _COLUMNS}
        tables.append(Table(name, tuple(classes), tuple(category_ids), **own, pictures=pictures))
    data = values["data"]
    data |= {key: tuple(data[key]) for key in ("notes", "licences")}
    return data | {role: tables[k] for role, k in values["roles"].items()}
