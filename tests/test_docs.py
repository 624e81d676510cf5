"""What the documentation promises exists: commands, make targets, files, sections, tables."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from detrlab.checkpoints.weights import BUILT_IN
from detrlab.cli import VERBS
from detrlab.cli.settings import RecipeOptions
from detrlab.compare.entrants import named, varied
from detrlab.errors import UserError
from detrlab.presets import PRESETS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
OF_EVERY_VERB = {"--help", "--version"}
# A page that adds a detector speaks of it; its own test runs those commands.
ADDED = {"docs/adding-a-variant.md": ("deformable-detr-anchors",)}

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
    """Whole commands: the verb and its arguments of every ``detrlab VERB ...`` in a block."""
    for line in lines_of_commands(text):
        # A line that begins with a number, a label or a table's edge is output, not a command.
        found = re.match(
            r"(?:for .*; do |\w+=\S+ )*(?:\S* ?torchrun .*-m )?detrlab ([a-z]+)\b(.*)", line
        )
        if found:
            verb, rest = found.groups()
            yield verb, shlex.split(re.split(r"[;&|>]", rest)[0])


def mentions(text):
    """Parts of commands: the verb and the rest of every ``detrlab VERB ...`` in backquotes."""
    return re.findall(r"`detrlab ([a-z]+)([^`]*)`", prose(text))


def flags_of(verb):
    options = import_module(f"detrlab.cli.{verb}").Options
    return {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)}


def parsed(verb, arguments):
    """The options as the command line itself would read them."""
    import tyro

    return tyro.cli(
        import_module(f"detrlab.cli.{verb}").Options,
        args=[each for each in arguments if each != "..."],
        prog=f"detrlab {verb}",
        config=(tyro.conf.OmitArgPrefixes,),
    )


def check_values(verb, options, added):
    """Names of recipes, settings and detectors are real; files of a user need not be there."""
    known = (*PRESETS, *added, *(BUILT_IN if verb in ("predict", "explain", "eval") else ()))
    models = getattr(options, "models", ()) or getattr(options, "model", ())
    models = (models,) if isinstance(models, str) else tuple(models or ())
    for model in models:
        is_file = model.endswith((".safetensors", ".pth")) or model.startswith("hf:")
        assert model in known or is_file or model.isupper(), f"there is no model {model}"
    if verb == "compare":
        named([model for model in models if model not in added])
    if verb == "ablate":
        varied(options.model, options.vary)
    if isinstance(options, RecipeOptions) and not options.recipe.endswith((".yaml", ".yml")):
        options.settled()
    if getattr(options, "budget", None):
        from detrlab.compare.budget import Budget

        Budget.parse(options.budget)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_ones_that_the_parsers_accept(page, capsys):
    added = ADDED.get(str(page.relative_to(REPOSITORY)), ())
    for verb, arguments in commands(read(page)):
        said = f"detrlab {verb} {' '.join(arguments)}"
        assert verb in VERBS, f"{said}: there is no such verb"
        if set(arguments) & OF_EVERY_VERB:
            continue
        try:
            options = parsed(verb, arguments)
        except SystemExit:
            pytest.fail(f"{said}: {capsys.readouterr().err}")
        try:
            check_values(verb, options, added)
        except UserError as mistake:
            pytest.fail(f"{said}: {mistake}")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_mentions_are_of_real_verbs_and_flags(page):
    for verb, rest in mentions(read(page)):
        assert verb in VERBS, f"detrlab {verb} does not exist"
        unknown = set(re.findall(r"(?<=\s)--[a-z-]+", rest)) - flags_of(verb) - OF_EVERY_VERB
        assert not unknown, f"detrlab {verb} has no {unknown}"


def test_the_commands_are_found_and_can_be_wrong(capsys):
    found = list(
        commands("```\nfor g in 0 1; do detrlab train --epochs 1 --device cuda:$g & done\n```")
    )
    assert found == [("train", ["--epochs", "1", "--device", "cuda:$g"])]
    assert list(commands("```\ndetrlab check DATA  # looks\n```")) == [("check", ["DATA"])]
    assert list(commands("```\ntorchrun --nproc-per-node 4 -m detrlab train --data D\n```")) == [
        ("train", ["--data", "D"])
    ]
    assert sum(len(list(commands(read(page)))) for page in PAGES) > 30
    for arguments in (["--epoch-count", "3"], ["--epochs", "many"]):
        with pytest.raises(SystemExit):
            parsed("train", arguments)
    capsys.readouterr()
    for wrong in ("--recipe lapptop", "--set train.clipp=1", "--recipe tiny --epochs 0"):
        with pytest.raises(UserError):
            check_values("train", parsed("train", wrong.split()), ())
    with pytest.raises(AssertionError, match="no model"):
        check_values("train", parsed("train", ["--model", "dert"]), ())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_scripts_take_the_flags_they_are_given(page):
    for line in lines_of_commands(read(page)) + re.findall(r"`(python [^`]+)`", prose(read(page))):
        found = re.match(r"python (\S+\.py)(.*)", line)
        if not found or found[1].startswith("path/"):
            continue
        script = REPOSITORY / found[1]
        assert script.is_file(), f"{found[1]} does not exist"
        for flag in re.findall(r"(?<=\s)--[a-z-]+", found[2]):
            assert f'"{flag}"' in read(script), f"{found[1]} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
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


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = prose(read(page))
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if "://" in target or target.startswith("mailto:"):
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
    folders = {f"{parent}/" for name in names for parent in Path(name).parents}
    return {*names, *folders}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_quoted_files_exist(page, tracked):
    """Paths below the repository's own folders, and Python files by whatever end of their path."""
    added = set(re.findall(r"^## 1\. The part: `(\S+)`$|They go into `(\S+)`", read(page), re.M))
    added = {name for names in added for name in names if name}
    for quoted in re.findall(r"`([\w./-]+)`", prose(read(page))):
        below = re.match(r"(?:docs|src|tests|benchmarks|examples|\.ci)/", quoted)
        is_python = re.fullmatch(r"[\w/-]+\.py", quoted)
        if quoted in added or not (below or is_python):
            continue
        assert any(name == quoted or name.endswith(f"/{quoted}") for name in tracked), (
            f"{quoted} does not exist"
        )


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_import_what_exists(page):
    for language, block in FENCED.findall(read(page)):
        if language.strip() != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("detrlab"):
                module = import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


TRANSLATED = [
    ("README.md", "README.zh-CN.md"),
    ("docs/walkthrough.md", "docs/walkthrough.zh-CN.md"),
]


def skeleton(page):
    """What both languages must share: headings' levels, code, tables' numbers, links."""
    text = read(page)
    outside = prose(text)
    rows = re.findall(r"^\|.*\|$", outside, re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)", outside)
    # A link to the other language, or to a page in this one, is a link to the page.
    pages = {target.replace(".zh-CN", "") for target in targets}
    return {
        "headings": re.findall(r"^#+(?= )", outside, re.MULTILINE),
        "code": lines_of_commands(text),
        "languages": [language for language, _ in FENCED.findall(text)],
        "tables": [(row.count("|"), sorted(re.findall(r"\d+(?:\.\d+)?", row))) for row in rows],
        "links": pages - {page.name.replace(".zh-CN", "")},
    }


@pytest.mark.parametrize(("english", "chinese"), TRANSLATED)
def test_both_languages_say_the_same(english, chinese):
    ours, theirs = skeleton(REPOSITORY / english), skeleton(REPOSITORY / chinese)
    for part in ours:
        assert ours[part] == theirs[part], f"{chinese} has other {part} than {english}"
    for page, other in ((english, chinese), (chinese, english)):
        name = Path(other).name
        assert f"]({name})" in read(REPOSITORY / page), f"{page} does not link to {name}"


@pytest.mark.parametrize(("english", "chinese"), TRANSLATED[:1])
def test_both_languages_give_the_same_numbers(english, chinese):
    """Also in running text: thousands, versions, sizes, counts of images."""
    numbers = []
    for page in (english, chinese):
        plain = re.sub(r"\]\([^)]*\)", "]", prose(read(REPOSITORY / page)))
        numbers.append(sorted(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"<!--.*?-->", "", plain))))
    assert numbers[0] == numbers[1]


def test_the_index_knows_every_page():
    index = REPOSITORY / "docs" / "index.md"
    linked = {
        (index.parent / target).resolve()
        for target in re.findall(r"\]\(([^)#\s]+)", read(index))
        if "://" not in target
    }
    pages = {page for page in PAGES if page != index and "results" not in page.parts}
    assert not pages - linked, "docs/index.md links to every page"


def test_tables_are_those_of_the_committed_results():
    command = [sys.executable, "docs/update_tables.py", "--check"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}: python docs/update_tables.py"
