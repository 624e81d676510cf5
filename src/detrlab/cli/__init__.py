"""The command line: ``detrlab VERB --flags``.

Each verb is a module of this folder with a dataclass ``Options`` (its flags) and a function
``run(options)`` that returns the exit code. Only the chosen verb is imported, so that help and
mistakes are answered at once.

Exit codes: 0 done; 1 done, and what was asked about is wrong (``check``); 2 a user's mistake;
130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from detrlab.errors import UserError, did_you_mean

VERBS = {
    "compare": "train several detectors alike and say what the differences mean",
    "ablate": "train variations of one detector and say what the differences mean",
    "train": "train one detector",
    "eval": "judge a checkpoint, or another tool's predictions",
    "predict": "find objects in images",
    "explain": "see where a detector looks, and why it missed an object",
    "check": "what is in a data set, and what is wrong with it",
    "convert": "checkpoints and data sets in other tools' formats",
    "benchmark": "what a detector costs on this machine, beside transformers' if asked",
    "models": "the detectors: parameters, cost, published accuracy",
}
_WITHOUT_PLAIN_WORDS = ("compare", "ablate", "train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
        return 0
    if arguments[0] in ("-V", "--version"):
        from detrlab import __version__

        print(f"detrlab {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb not in VERBS:
            raise UserError(f"unknown command {verb!r}{did_you_mean(verb, VERBS)}")
        return _run(verb, rest)
    except UserError as mistake:
        print(f"detrlab {verb}: {mistake}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print(f"detrlab {verb}: interrupted", file=sys.stderr)
        return 130


def _run(verb: str, arguments: Sequence[str]) -> int:
    import tyro

    if verb in _WITHOUT_PLAIN_WORDS and arguments and not arguments[0].startswith("-"):
        raise UserError(_say_it_with_a_flag(verb, arguments[0]))
    command = import_module(f"detrlab.cli.{verb}")
    options = tyro.cli(
        command.Options,
        args=arguments,
        prog=f"detrlab {verb}",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return command.run(options)


def _say_it_with_a_flag(verb: str, word: str) -> str:
    """What to write instead of a word that no flag stands before."""
    from detrlab.presets import PRESETS

    flag = "--data"
    if word in PRESETS:
        flag = "--models" if verb == "compare" else "--model"
    return f"{word!r} stands there without a flag: write detrlab {verb} {flag} {word}"


def _print_help() -> None:
    print("usage: detrlab VERB [--flags]        detrlab VERB --help shows a verb's flags\n")
    width = max(map(len, VERBS))
    for verb, purpose in VERBS.items():
        print(f"  {verb:<{width}}  {purpose}")
    print("\nFirst steps: detrlab compare --recipe tiny    (trains all five on built-in pictures)")
