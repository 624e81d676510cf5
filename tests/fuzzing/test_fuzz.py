"""Every file that once broke something, and the short form of benchmarks/fuzz.py.

``corpus`` holds a file for each finding and hand-made hostile files of every kind;
``expected.txt`` says what each replaces in valid files, how it must end, and with which words.
"""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzz import VERDICTS, Opener, shares, tally
from fuzz_kinds import KINDS
from misuses import MISUSES

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
LINES = (HERE / "expected.txt").read_text(encoding="utf-8").splitlines()
EXPECTED = [tuple(map(str.strip, line.split(" | "))) for line in LINES]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs inotify and rlimits")


@pytest.fixture(scope="module")
def opener(tmp_path_factory):
    with Opener(tmp_path_factory.mktemp("fuzz") / "home", seed=7) as opener:
        yield opener


@pytest.mark.parametrize(
    ("file", "replaced", "verdict", "words"), EXPECTED, ids=[each[0] for each in EXPECTED]
)
def test_known_files(opener, file, replaced, verdict, words):
    ending = opener.run(file.split("/")[0], CORPUS / file, replaced)
    assert (ending.verdict, words in ending.said) == (verdict, True), ending.said


def test_every_known_file_is_tried():
    files = {str(path.relative_to(CORPUS)) for path in CORPUS.rglob("*") if path.is_file()}
    assert files == {file for file, *_ in EXPECTED}
    assert len(files) >= 80
    assert {file.split("/")[0] for file in files} == set(KINDS)
    assert {verdict for _, _, verdict, _ in EXPECTED} == set(VERDICTS[:-1])


@pytest.mark.slow
def test_mutated_files(opener):
    """Some hundred inputs; the committed results have 20,000."""
    found = {name: tally(opener, name, count) for name, count in shares(300, list(KINDS)).items()}
    assert [line for each in found.values() for line in each.broken] == []
    # Mutations are neither harmless nor useless: each verdict is given often.
    counts = sum((each.counts for each in found.values()), Counter())
    assert counts.total() >= 295
    assert min(counts[each] for each in VERDICTS[:-1]) > 30


def test_what_an_input_may_not_do_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    changed = tmp_path / "changed.txt"
    changed.write_text("changed")
    with Opener(tmp_path / "home", seed=0, kinds="misuses") as opener:
        for number, words in enumerate(MISUSES):
            ending = opener.run(f"misuse {number}", changed, "a.txt")
            assert (ending.verdict, words in ending.said) == ("broken", True), ending
