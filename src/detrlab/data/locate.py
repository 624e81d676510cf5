"""Which file of a store an annotated file name means, and which split a name means."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
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

    The word closest to the file counts: ``train/old_val/a.json`` means ``val``.
    """
    for part in reversed(posixpath.splitext(name)[0].split("/")):
        for word in reversed(re.findall(r"[a-z]+", part.lower())):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return ""


def is_image(name: str) -> bool:
    """Whether a file has an image's extension."""
    return name.lower().endswith(ENDINGS)


def stem(name: str) -> str:
    """The last part of a file's name, without its extension."""
    return posixpath.splitext(posixpath.basename(name))[0]


def links_note(store: Store) -> str:
    """One sentence about links that were not followed; empty if there are none."""
    if not (count := len(store.refused)):
        return ""
    names = ", ".join(store.refused[:3]) + ", ..." * (count > 3)
    return (
        f"{count:,} links lead outside of {store.root} and were not followed ({names}): set "
        "DETRLAB_LINKS=follow to follow them"
    )


def missing_rule(store: Store, name: str) -> str:
    """The rule for a file that was not found: ``file-link`` if a refused link may hide it."""
    last = posixpath.basename(name)
    hidden = any(posixpath.basename(link) == last or not is_image(link) for link in store.refused)
    return "file-link" if hidden else "file-missing"


def locate_images(
    store: Store, files: list[str], annotation_file: str, split: str, findings: Findings
) -> list[str | None]:
    """The store's file of each image, None if there is none.

    Names are looked up below the folder in which most of them exist: next to the annotations,
    in ``images``, in the split's own folder, or any other. Names that are not found there, such
    as absolute names, are looked up by their last part, then by its ``_loose`` form.
    """
    names = store.names
    sample = files[:: max(1, len(files) // 200)]
    folders = _candidates(store, posixpath.dirname(annotation_file), split)
    best = max(folders, key=lambda folder: sum(within(folder, file) in names for file in sample))
    prefix = best + "/" if best else ""
    by_name: dict[str, str | None] | None = None
    members: list[str | None] = []
    for file in files:
        # A name that is listed as it stands needs no normalization: the store's names are safe.
        member = prefix + file if prefix + file in names else within(best, file)
        if member is None or member not in names:
            by_name = _by_last_part(store, best) if by_name is None else by_name
            last = posixpath.basename(file.replace("\\", "/"))
            found = by_name.get(last) or by_name.get(_loose(last))
            if found is None:
                rule = "file-unsafe" if member is None else missing_rule(store, file)
                findings.add(rule, split, annotation_file, None, None, file)
            member = found
        members.append(member)
    return members


def _candidates(store: Store, here: str, split: str) -> list[str]:
    """Folders that file names may be relative to; if several fit equally well, the first counts."""
    parents = [here]
    while parents[-1]:
        parents.append(posixpath.dirname(parents[-1]))
    holding = Counter(posixpath.dirname(name) for name in store.names if is_image(name))
    common = [folder for folder, _ in holding.most_common()]
    # The split's own folder comes first: another may hold files of the same names.
    folders = [folder for folder in common if split and split_of(folder + "/") == split]
    folders += [*parents, *(posixpath.join(folder, "images") for folder in parents)]
    folders += [each for folder in common for each in (folder, posixpath.dirname(folder))]
    return list(dict.fromkeys(folders))


def _by_last_part(store: Store, preferred: str) -> dict[str, str | None]:
    """Image files by the last part of their name and by its loose form; None if several fit.

    A file in the preferred folder is taken rather than another of the same name.
    """
    images = [name for name in store.names if is_image(name)]
    inside = [name for name in images if posixpath.dirname(name) == preferred]
    exact = {**_unique(images), **_unique(inside)}
    return {**_unique(filter(None, exact.values()), _loose), **exact}


def _unique(names: Iterable[str], form: Callable[[str], str] = str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        key = form(posixpath.basename(name))
        found[key] = None if key in found else name
    return found


def _loose(name: str) -> str:
    """The same for names that differ only in case, Unicode normalization or URL encoding."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()
