"""Which file of a store an annotation's file name means, and which split a name speaks of."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from urllib.parse import unquote

from detrlab.data.findings import Findings
from detrlab.data.images import ENDINGS
from detrlab.data.store import Store, within

_SPLIT_WORDS = {
    "train": ("train", "training", "trainval", "trn"),
    "val": ("val", "valid", "validation", "dev", "minival", "eval"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words}


def split_of(name: str) -> str:
    """``train``, ``val`` or ``test`` if the file or a folder around it says so, else empty.

    The word closest to the file counts: ``train/old_val/a.json`` speaks of ``val``.
    """
    for part in reversed(posixpath.splitext(name)[0].split("/")):
        for word in reversed(re.findall(r"[a-z]+", part.lower())):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return ""


def is_image(name: str) -> bool:
    """Whether a file name ends like an image's."""
    return name.lower().endswith(ENDINGS)


def _image_folders(names: Iterable[str]) -> Counter[str]:
    return Counter(name.rpartition("/")[0] for name in names if is_image(name))


def locate_images(
    store: Store, files: list[str], annotation_file: str, split: str, findings: Findings
) -> list[str | None]:
    """The store's file of each image, None where there is none.

    Names are looked up below the folder that most of them are found in: next to the
    annotations, in ``images``, in the split's own folder, wherever. Absolute names and names
    of another system are looked up by their last part; so are names that differ in case only, in
    how accents are written, or that are written as in an address (``my%20photo.jpg``).
    """
    names = store.names
    here = posixpath.dirname(annotation_file)
    folders = _candidates(store, here, split)
    sample = files[:: max(1, len(files) // 200)]

    def hits(folder: str) -> int:
        return sum(within(folder, file) in names for file in sample)

    best = max(folders, key=hits) if sample else here
    members: list[str | None] = []
    refused = set(store.refused)
    by_name: dict[str, str] | None = None
    loose: dict[str, str] | None = None
    prefix = best + "/" if best else ""
    for file in files:
        plain = prefix + file
        # A name that is listed as it stands needs no thought; the store's names are safe.
        member = plain if plain in names else within(best, file)
        if member is None or member not in names:
            if by_name is None:
                by_name = _unique_names(store, best)
            last = posixpath.basename(file.replace("\\", "/"))
            found = by_name.get(last)
            if found is None:
                loose = _loosely(by_name) if loose is None else loose
                found = loose.get(_loose(last))
            _report(file, member, found, refused, annotation_file, split, findings)
            member = found
        members.append(member)
    return members


def _candidates(store: Store, here: str, split: str) -> list[str]:
    """Folders that file names may be relative to, the likeliest first."""
    counts = _image_folders(store.names)
    parents = [here]
    while parents[-1]:
        parents.append(posixpath.dirname(parents[-1]))
    folders = dict.fromkeys(parents)
    for folder in parents:
        folders[posixpath.join(folder, "images") if folder else "images"] = None
    same_split = [
        folder for folder, _ in counts.most_common() if split and split_of(folder + "/") == split
    ]
    folders.update(dict.fromkeys(same_split))
    for folder, _ in counts.most_common():
        folders[folder] = None
        folders[posixpath.dirname(folder)] = None
    # The split's own folder wins over another that holds the same names, by standing first.
    return same_split + [folder for folder in folders if folder not in same_split]


def _unique_names(store: Store, preferred: str) -> dict[str, str]:
    """Files by their last part, where that is unambiguous or lies in the preferred folder."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for name in store.names:
        if not is_image(name):
            continue
        last = posixpath.basename(name)
        if posixpath.dirname(name) == preferred:
            found[last] = name
            twice.discard(last)
        elif last in found and posixpath.dirname(found[last]) != preferred:
            twice.add(last)
        else:
            found.setdefault(last, name)
    return {last: name for last, name in found.items() if last not in twice}


def _loose(name: str) -> str:
    """What stays the same on disks that ignore case or write accents apart, and in addresses."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def _loosely(by_name: dict[str, str]) -> dict[str, str]:
    """Files by the loose form of their last part, where that is unambiguous."""
    found: dict[str, str | None] = {}
    for last, name in by_name.items():
        key = _loose(last)
        found[key] = None if key in found else name
    return {key: name for key, name in found.items() if name is not None}


def _report(
    file: str,
    member: str | None,
    found: str | None,
    refused: set[str],
    annotation_file: str,
    split: str,
    findings: Findings,
) -> None:
    """Say why a name was not simply there."""
    if found is not None:
        return
    if member is None:
        findings.add("file-unsafe", split, annotation_file, None, None, file)
    elif member in refused or any(member.startswith(name + "/") for name in refused):
        findings.add("file-link", split, annotation_file, None, None, file)
    else:
        findings.add("file-missing", split, annotation_file, None, None, file)
