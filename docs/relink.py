"""Point the walkthrough's links at the lines where things are defined.

A link reads [`Name`](path.py#L12) or [`Name.method`](path.py#L12). Run without arguments, it
writes the right line numbers; a test checks that there is nothing to write.
"""

import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGES = ("walkthrough.md", "walkthrough.zh-CN.md", "variants.md")
LINK = re.compile(r"\[`([\w.]+)`\]\(([\w./-]+\.py)#L\d+\)")


def line_of(file: Path, name: str) -> int:
    """The line that defines ``name``: a class, a function, a method or a constant."""
    places = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    places[f"{node.name}.{inner.name}"] = inner.lineno
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            places[node.name] = node.lineno
        targets = [node.target] if isinstance(node, ast.AnnAssign) else []
        targets += node.targets if isinstance(node, ast.Assign) else []
        places |= {each.id: node.lineno for each in targets if isinstance(each, ast.Name)}
    if name not in places:
        raise LookupError(f"{file.name} defines no {name}")
    return places[name]


def relinked(text: str) -> str:
    """The page with every link at the right line."""

    def right(link: re.Match[str]) -> str:
        name, path = link[1], link[2]
        return f"[`{name}`]({path}#L{line_of(HERE / path, name)})"

    return LINK.sub(right, text)


if __name__ == "__main__":
    for page in PAGES:
        if (HERE / page).is_file():
            path = HERE / page
            path.write_text(relinked(path.read_text(encoding="utf-8")), encoding="utf-8")
