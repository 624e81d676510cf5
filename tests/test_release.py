"""What a release consists of beside the code: versions, the container's recipe, the site."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_every_place_names_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == VERSION
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest[1] == VERSION


def test_the_container_is_built_from_files_that_exist():
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()]
    assert {"pyproject.toml", "src"} <= set(copied)
    assert all((ROOT / word).exists() for word in copied)
    kept = (ROOT / ".dockerignore").read_text().split()
    assert all(f"!{word}" in kept for word in copied)
    # setuptools reads these; without them the build in the container would fail.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["readme"] in copied
    assert re.search(r'^CMD \["detrlab", "serve", "--host", "0.0.0.0"\]$', text, re.M)


def test_the_site_has_every_page_of_the_documentation():
    def pages(nav):
        for entry in nav:
            if isinstance(entry, str):
                yield entry
            else:
                for value in entry.values():
                    yield from [value] if isinstance(value, str) else pages(value)

    config = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(pages(yaml.safe_load(config)["nav"]))
    there = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
    assert there <= listed
    assert all((ROOT / page).is_file() for page in listed)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    source, site = tmp_path / "source", tmp_path / "site"
    subprocess.run([sys.executable, "docs/make_site.py", source], cwd=ROOT, check=True)
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "docs_dir: build/site-source" in text
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        text.replace("build/site-source", str(source))
        .replace("build/site", str(site))
        .replace("paths: [src]", f"paths: [{ROOT / 'src'}]")
    )
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    reference = (site / "docs" / "reference" / "index.html").read_text(encoding="utf-8")
    assert "A network with its classes and preprocessing, ready for inference." in reference
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link rel=\"stylesheet\")[^>]*(?:src|href)=\"(https?:[^\"]+)",
            page.read_text(encoding="utf-8"),
        )
        assert not loaded, page
