"""What the documentation promises exists: verbs, flags, make targets, linked files."""

import dataclasses
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from detrlab.cli import VERBS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
OF_EVERY_VERB = {"--help", "--version"}


def commands(text):
    """Every ``detrlab VERB ...`` in fenced blocks and in backquotes."""
    fenced = "\n".join(re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    fenced = re.sub(r"\\\n\s*", " ", fenced)
    found = re.findall(r"(?:^|[\s;])detrlab ([a-z]+)([^\n#;&|]*)", fenced)
    return found + re.findall(r"`detrlab ([a-z]+)([^`]*)`", text)


def flags_of(verb):
    options = import_module(f"detrlab.cli.{verb}").Options
    return {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_real(page):
    for verb, rest in commands(page.read_text(encoding="utf-8")):
        assert verb in VERBS, f"detrlab {verb} does not exist"
        unknown = set(re.findall(r"(?<=\s)--[a-z-]+", rest)) - flags_of(verb) - OF_EVERY_VERB
        assert not unknown, f"detrlab {verb} has no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_make_targets_are_real(page):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    asked = re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)
    assert set(asked) <= targets


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{target} does not exist"


def test_tables_are_those_of_the_committed_results():
    command = [sys.executable, "docs/update_tables.py", "--check"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}: python docs/update_tables.py"
