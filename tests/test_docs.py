"""What the documentation promises exists: commands, targets, files, sections, tables."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from detrlab.cli import VERBS
from detrlab.cli.settings import RecipeOptions
from detrlab.compare.budget import Budget
from detrlab.compare.entrants import named, varied
from detrlab.errors import UserError
from detrlab.presets import OWN_PRESETS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=[str(page.relative_to(REPOSITORY)) for page in PAGES]
)
OF_EVERY_VERB = {"--help", "--version"}
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def read(page):
    return page.read_text(encoding="utf-8")


def prose(text):
    """The page without its fenced blocks."""
    return FENCED.sub("", text)


def lines_of_commands(text):
    """Every line of fenced blocks, continued lines joined and comments left out."""
    blocks = "\n".join(block for _, block in FENCED.findall(text))
    joined = re.sub(r"\\\n\s*", " ", blocks)
    return [re.sub(r"(?:^|\s)#.*", "", line).strip() for line in joined.splitlines()]


def commands(text):
    """The verb and the arguments of every ``detrlab VERB ...`` in a block."""
    for line in lines_of_commands(text):
        found = re.match(
            r"(?:for .*; do |\w+=\S+ )*(?:\S* ?torchrun .*-m )?detrlab ([a-z]+)\b(.*)", line
        )
        if found:
            yield found[1], shlex.split(re.split(r"[;&|>]", found[2])[0])


def flags_of(verb):
    options = import_module(f"detrlab.cli.{verb}").Options
    hints = get_type_hints(options, include_extras=True)

    def name_of(field):
        own = (getattr(each, "name", None) for each in getattr(hints[field], "__metadata__", ()))
        return next((each for each in own if each), field)

    fields = (name_of(field.name) for field in dataclasses.fields(options))
    return {f"--{each.replace('_', '-')}" for each in fields}


def parsed(verb, arguments):
    """The options as the command line itself would read them."""
    import tyro

    return tyro.cli(
        import_module(f"detrlab.cli.{verb}").Options,
        args=[each for each in arguments if each != "..."],
        prog=f"detrlab {verb}",
        config=(tyro.conf.OmitArgPrefixes,),
    )


def check_values(verb, options):
    """Names of recipes, settings and detectors are real; files of a user need not be there."""
    models = getattr(options, "models", ()) or getattr(options, "model", ())
    models = (models,) if isinstance(models, str) else tuple(models or ())
    for model in models:
        files = (".safetensors", ".pth", ".onnx", ".xml")
        is_file = model.endswith(files) or model.startswith("hf:")
        if not (is_file or model.isupper()):
            named([model])
    if verb == "ablate":
        varied(options.model, options.vary)
    if isinstance(options, RecipeOptions) and not options.recipe.endswith((".yaml", ".yml")):
        options.settled()
    if getattr(options, "budget", None):
        Budget.parse(options.budget)


@pytest.fixture
def own_presets(monkeypatch):
    """The pages may use the preset of ``examples/anchors.py``."""
    monkeypatch.syspath_prepend(REPOSITORY / "examples")
    monkeypatch.setenv(OWN_PRESETS, "anchors")


@every_page
@pytest.mark.usefixtures("own_presets")
def test_commands_are_accepted(page, capsys):
    for verb, arguments in commands(read(page)):
        line = f"detrlab {verb} {' '.join(arguments)}"
        assert verb in VERBS, f"{line}: no such command"
        if set(arguments) & OF_EVERY_VERB:
            continue
        try:
            check_values(verb, parsed(verb, arguments))
        except (SystemExit, UserError) as error:
            pytest.fail(f"{line}: {error} {capsys.readouterr().err}")


@every_page
def test_flags_in_running_text_exist(page):
    for verb, rest in re.findall(r"`detrlab ([a-z]+)([^`]*)`", prose(read(page))):
        assert verb in VERBS, f"detrlab {verb} does not exist"
        unknown = set(re.findall(r"(?<=\s)--[a-z-]+", rest)) - flags_of(verb) - OF_EVERY_VERB
        assert not unknown, f"detrlab {verb} has no {unknown}"


@pytest.mark.parametrize(
    "wrong",
    [
        "--epoch-count 3",
        "--epochs many",
        "--recipe lapptop",
        "--set train.clipp=1",
        "--recipe tiny --epochs 0",
        "--model dert",
    ],
)
def test_wrong_commands_are_found(wrong, capsys):
    ((verb, arguments),) = commands(f"```\nfor g in 0 1; do detrlab train {wrong} & done # x\n```")
    assert arguments == wrong.split()
    with pytest.raises((SystemExit, UserError)):
        check_values(verb, parsed(verb, arguments))
    capsys.readouterr()


def test_many_commands_are_found():
    assert sum(len(list(commands(read(page)))) for page in PAGES) > 30


@every_page
def test_scripts_take_the_flags_they_are_given(page):
    for line in lines_of_commands(read(page)) + re.findall(r"`(python [^`]+)`", prose(read(page))):
        found = re.match(r"python (\S+\.py)(.*)", line)
        if found:
            script = REPOSITORY / found[1]
            assert script.is_file(), f"{found[1]} does not exist"
            for flag in re.findall(r"(?<=\s)--[a-z-]+", found[2]):
                assert f'"{flag}"' in read(script), f"{found[1]} has no {flag}"


@every_page
def test_make_targets_are_real(page):
    makefile = read(REPOSITORY / "Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE)) | {"SYSTEM_TORCH"}
    asked = re.findall(r"(?:^|`)make((?: [\w-]+(?:=[^\s`]*)?)+)", read(page), re.MULTILINE)
    for word in " ".join(asked).split():
        name, given, _ = word.partition("=")
        assert name in (variables if given else targets), f"make {word}"


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(read(page)), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@every_page
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose(read(page))):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{target} does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target} has no section #{anchor}"
        elif anchor:
            line = int(anchor.removeprefix("L"))
            assert 1 <= line <= len(read(file).splitlines()), f"{target} has no line {line}"


@pytest.fixture(scope="module")
def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    names = listed.stdout.splitlines()
    return {*names, *(f"{parent}/" for name in names for parent in Path(name).parents)}


@every_page
def test_quoted_files_exist(page, tracked):
    """Paths below the repository's own folders, and Python files by the end of their path."""
    for quoted in re.findall(r"`([\w./-]+)`", prose(read(page))):
        below = re.match(r"(?:docs|src|tests|benchmarks|examples|\.ci)/", quoted)
        if below or re.fullmatch(r"[\w/-]+\.py", quoted):
            found = any(name == quoted or name.endswith(f"/{quoted}") for name in tracked)
            assert found, f"{quoted} does not exist"


@every_page
def test_python_blocks_import_what_exists(page):
    for language, block in FENCED.findall(read(page)):
        for node in ast.walk(ast.parse(block if language.strip() == "python" else "")):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("detrlab"):
                module = import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_the_index_links_to_every_page():
    index = REPOSITORY / "docs" / "index.md"
    targets = re.findall(r"\]\(([^)#\s]+)", read(index))
    linked = {(index.parent / target).resolve() for target in targets}
    pages = {page for page in PAGES if page != index and "results" not in page.parts}
    assert not pages - linked


def test_tables_are_those_of_the_committed_results():
    command = [sys.executable, "docs/update_tables.py", "--check"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}: python docs/update_tables.py"
