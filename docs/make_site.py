"""Gather the pages of the repository, and the files that they link to, into one folder for mkdocs.

    python docs/make_site.py build/site-source

The folder has the repository's own layout, because mkdocs takes pages from below one folder only,
and README.md and CHANGELOG.md lie above docs/. A link to a folder leads to a list of its files.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")


def main() -> None:
    target = Path(sys.argv[1]).resolve()
    shutil.rmtree(target, ignore_errors=True)
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "examples" / "README.md"]
    linked: set[Path] = set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        paths = {link: (page.parent / link).resolve() for link in LINK.findall(text)}
        linked |= {path for path in paths.values() if path.is_relative_to(ROOT)}
        write(target, page, LINK.sub(lambda found, paths=paths: listed(found[1], paths), text))
    for folder in filter(Path.is_dir, linked.copy()):
        inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        inside = [path for path in inside if "__pycache__" not in path.parts]
        linked |= set(inside)
        lines = [f"* [{name}]({name})" for name in (path.relative_to(folder) for path in inside)]
        name = folder.relative_to(ROOT)
        write(target, folder / "README.md", "\n".join([f"# {name}", "", *lines, ""]))
    for path in linked:
        copied = target / path.relative_to(ROOT)
        if path.is_file() and not copied.exists():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)


def listed(link: str, paths: dict[str, Path]) -> str:
    """A link to a folder, as one to the list of its files."""
    return f"{link.rstrip('/')}/README.md" if paths[link].is_dir() else link


def write(target: Path, path: Path, text: str) -> None:
    """Put a page where it lies in the repository."""
    there = target / path.relative_to(ROOT)
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
