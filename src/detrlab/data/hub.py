"""Data sets of the Hugging Face Hub, parquet files, and image folders with metadata.jsonl.

Rows of the Hub and of parquet files are written once to a folder in the cache, images byte for
byte, with their annotations as COCO. What reads folders reads it then.
"""

from __future__ import annotations

import io
import json
import logging
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from detrlab import files
from detrlab.data.coco import from_document
from detrlab.data.columns import Columns
from detrlab.data.images import ENDINGS_OF, MAX_BYTES, read_header
from detrlab.data.locate import split_of
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store, within
from detrlab.data.writers import new_folder
from detrlab.download import cache_folder, is_offline
from detrlab.errors import UserError

HUB = "hf:"
METADATA = "metadata.jsonl"

Progress = Callable[[int, int], None]


class Named(NamedTuple):
    """What stands behind ``hf:``.

    Attributes:
        name: a repository, or a local folder or parquet file.
        config: the configuration of a data set that has several.
        revision: a branch, tag or commit.
        boxes: how boxes are meant, where it is said.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    boxes: str | None = None


def parse(source: str) -> Named:
    """``hf:NAME[:CONFIG][@REVISION][?boxes=FORMAT]``.

    Raises:
        UserError: nothing is named, or there is another option.
    """
    text, _, query = source.removeprefix(HUB).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - {"boxes"}:
        raise UserError(f"{source}: unknown option {min(unknown)!r}; there is only ?boxes=xyxy")
    text, _, revision = text.partition("@")
    name, _, config = text.partition(":")
    if not name:
        raise UserError(f"{source} names no data set: write hf:OWNER/NAME")
    return Named(name, config or None, revision or None, options.get("boxes"))


def downloaded(source: str, *, progress: Progress | None = None) -> Path:
    """The folder with a data set of the Hub, written first if it is not there.

    Args:
        source: see ``parse``.
        progress: called with images done and in all.

    Raises:
        UserError: ``datasets`` is not installed, there is no such data set or it cannot be had,
            or it holds no images with objects.
    """
    named = parse(source)
    local = Path(named.name).expanduser()
    if local.suffix == ".parquet" or (local.is_dir() and any(local.rglob("*.parquet"))):
        splits, roots = _parquet_splits(local), []
    else:
        splits = _load(named.name, source, name=named.config, revision=named.revision)
        roots = [*_caches(), *([local] if local.is_dir() else [])]
    prints = [split._fingerprint for split in splits.values()]
    key = files.digest(json.dumps([source, prints]).encode())[:12]
    stem = re.sub(r"\W+", "-", posixpath.basename(named.name.rstrip("/")))
    folder = cache_folder() / "hf" / f"{stem}-{key}"
    if not folder.is_dir():
        total = sum(len(split) for split in splits.values())
        with new_folder(folder) as temporary:
            notes, done = [], 0
            for name, split in splits.items():
                writer = _Writer(temporary, name, f"{source}, {name}", named.boxes, roots)
                for row in split:
                    writer.add(row)
                    done += 1
                    if progress is not None:
                        progress(done, total)
                notes.append(writer.finish(_declared_names(split.features)))
            (temporary / "notes.txt").write_text("\n".join(notes), encoding="utf-8")
    return folder


def notes_of(folder: Path) -> tuple[str, ...]:
    """How the rows of a data set were read, one sentence for each split."""
    return tuple((folder / "notes.txt").read_text(encoding="utf-8").splitlines())


def _require_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "data sets of the Hugging Face Hub and parquet files need the package datasets: "
            'pip install "detrlab[datasets]"'
        ) from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what goes wrong is in its exceptions
    return datasets


def _parquet_splits(path: Path) -> dict[str, Any]:
    """The splits of parquet files, by the words in their names."""
    found: dict[str, list[str]] = {}
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        found.setdefault(split_of(name) or "train", []).append(str(file))
    return _load("parquet", str(path), data_files=found)


def _caches() -> list[Path]:
    """Where the Hub's libraries keep what they download."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return [Path(_require_datasets().config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]


def _load(builder: str, source: str, **arguments: Any) -> dict[str, Any]:
    """The splits, images not decoded.

    Raises:
        UserError: whatever goes wrong, in one line.
    """
    datasets = _require_datasets()
    local = datasets.DownloadConfig(local_files_only=is_offline())
    try:
        loaded = datasets.load_dataset(builder, download_config=local, **arguments)
    except Exception as error:  # of many kinds, also of pyarrow and httpx
        cause = error.__cause__ or error  # its own words say only that there was an error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(f"{source} cannot be read as a data set ({reason}): get it again") from None
    splits = {}
    for name, split in loaded.items():
        for column, feature in split.features.items():
            if isinstance(feature, datasets.Image):
                split = split.cast_column(column, datasets.Image(decode=False))
        splits[name] = split
    return splits


def _declared_names(features: Any) -> list[str] | None:
    """The names of the first list of class labels among the features."""
    names = getattr(features, "names", None)
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    parts = features.values() if isinstance(features, Mapping) else [features]
    inner = [part.feature for part in parts if hasattr(part, "feature")]
    inner += [part for part in parts if isinstance(part, Mapping) or hasattr(part, "names")]
    if isinstance(features, list):
        inner += features
    return next((found for part in inner if (found := _declared_names(part))), None)


class _Writer:
    """Writes the images of a split, and its annotations at the end.

    Images that are only named must lie below one of ``roots``: rows may name any file.
    """

    def __init__(
        self, folder: Path, split: str, where: str, boxes: str | None, roots: list[Path]
    ) -> None:
        self._roots = [root.resolve() for root in roots]
        self._folder = folder
        self._split = re.sub(r"\W+", "-", split)
        self._where = where
        self._columns = Columns(where, boxes)
        self._taken: set[str] = set()
        (folder / self._split).mkdir()

    def add(self, row: Mapping[str, Any]) -> None:
        images = {name: value for name, value in row.items() if _is_image(value)}
        if not images:
            raise UserError(f"{self._where}: no column of images among {', '.join(row)}")
        column, image = next(iter(images.items()))
        data = image["bytes"]
        if data is None:
            data = self._read(str(image.get("path")))
        name, size = self._name(image.get("path"), data)
        (self._folder / self._split / name).write_bytes(data)
        others = {key: value for key, value in row.items() if key != column}
        self._columns.add(name, size, others)

    def _read(self, path: str) -> bytes:
        """An image that the data only names."""
        file = Path(path).resolve()
        if not any(file.is_relative_to(root) for root in self._roots) or not file.is_file():
            raise UserError(f"{self._where}: the image {path} is no file of this data set")
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{self._where}: {path} has more than {MAX_BYTES:,} bytes")
        return file.read_bytes()

    def _name(self, path: str | None, data: bytes) -> tuple[str, tuple[int, int]]:
        """A new name with the ending that the contents have, and (height, width)."""
        try:
            header = read_header(io.BytesIO(data), self._where)
            ending, size = ENDINGS_OF.get(header.format, (".jpg",))[0], header.upright()
        except UserError:  # what opens the folder says so
            ending, size = ".jpg", (0, 0)
        stem = posixpath.splitext(posixpath.basename((path or "").replace("\\", "/")))[0]
        stem = re.sub(r"[^\w.-]+", "_", stem).lstrip(".")[:100]
        if not stem or stem.lower() in self._taken:
            stem = f"{stem}{'-' * bool(stem)}{len(self._taken) + 1:06d}"
        self._taken.add(stem.lower())
        return stem + ending, size

    def finish(self, names: list[str] | None) -> str:
        """Write the annotations; returns how they were read."""
        document, note = self._columns.document(names)
        folder = self._folder / "annotations"
        folder.mkdir(exist_ok=True)
        text = json.dumps(document, ensure_ascii=False)
        (folder / f"instances_{self._split}.json").write_text(text, encoding="utf-8")
        return f"{self._split}: {note}"


def _is_image(value: Any) -> bool:
    return isinstance(value, Mapping) and "bytes" in value and value.keys() <= {"bytes", "path"}


def metadata_files(store: Store) -> list[str]:
    """The ``metadata.jsonl`` of each folder of images."""
    return sorted(name for name in store.names if posixpath.basename(name) == METADATA)


def read_metadata(store: Store, names: Iterable[str]) -> tuple[list[RawSplit], list[str]]:
    """Image folders with ``metadata.jsonl``, and how their objects were read.

    Raises:
        UserError: a file is no JSON of lines, or has no objects.
    """
    splits, notes = [], []
    for name in names:
        where = str(store.root / name)
        columns = Columns(where)
        for number, line in enumerate(store.read(name).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                file = row["file_name"]
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UserError(
                    f"{where}, line {number}: it should be a JSON object with 'file_name'"
                ) from None
            member = within(posixpath.dirname(name), file) if isinstance(file, str) else None
            size = (0, 0)
            if member in store.names:
                try:
                    with store.open(member) as stream:
                        size = read_header(stream, where).upright()
                except UserError:  # what opens the data set says so
                    pass
            others = {key: value for key, value in row.items() if key != "file_name"}
            columns.add(str(file), size, others)
        document, note = columns.document()
        split = split_of(name)
        splits.append(from_document(document, store, name, split))
        notes.append(f"{split or 'images'}: {note}")
    return splits, notes
