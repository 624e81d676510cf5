"""Fill the tables of the documentation from the committed results.

A block ``<!-- table FILE: TITLE -->`` ... ``<!-- end -->`` in a Markdown file is filled with the
table below the line TITLE of ``docs/results/FILE``. ``--check`` changes nothing and fails if a
block is out of date; the tests run it.
"""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = (*sorted(ROOT.glob("README*.md")), *sorted(DOCS.glob("*.md")))
BLOCK = re.compile(r"<!-- table (\S+): (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)


def table(file: str, title: str) -> str:
    """The Markdown table that follows the line ``title`` of a result file."""
    text = (DOCS / "results" / file).read_text(encoding="utf-8")
    if title not in text.splitlines():
        raise SystemExit(f"docs/results/{file} has no line {title!r}")
    after = text.split(f"{title}\n", 1)[1].lstrip("\n")
    rows = []
    for line in after.splitlines():
        if not line.startswith("|"):
            break
        rows.append(line)
    return "\n".join(rows) + "\n"


def filled(text: str) -> str:
    """The page with up-to-date tables."""
    return BLOCK.sub(
        lambda m: f"<!-- table {m[1]}: {m[2]} -->\n{table(m[1], m[2])}<!-- end -->", text
    )


def main(check: bool) -> int:
    """Update the pages; with ``check`` return the number of pages that are out of date."""
    stale = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale += 1
            print(f"{page.name}: {'out of date' if check else 'updated'}")
            if not check:
                page.write_text(new, encoding="utf-8")
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
