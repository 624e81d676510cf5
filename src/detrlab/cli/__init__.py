"""The command line: ``detrlab VERB --flags``.

Each verb is a module of this folder with a dataclass ``Options`` (its flags) and a function
``run(options)`` that returns the exit code. Only the chosen verb is imported, so that help and
error messages appear at once.

Exit codes: 0 success; 1 ``check`` found problems; 2 user error; 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module

from detrlab.errors import UserError, did_you_mean, lacks_memory, printable

VERBS = {
    "compare": "train several detectors with the same data and budget, and compare them",
    "ladder": "train every step from DETR to DEIMv2, and see what each change bought",
    "ablate": "train variations of one detector, and compare them",
    "train": "train one detector",
    "eval": "evaluate a checkpoint, or the predictions of another tool",
    "predict": "find objects in images, videos and camera pictures",
    "serve": "find objects by a web page, and by requests of programs",
    "explain": "show where a detector attends, and why it missed an object",
    "check": "inspect a data set, report its problems and repair them",
    "convert": "convert checkpoints and data sets to and from other formats",
    "export": "write a detector for ONNX Runtime or OpenVINO, with a certificate",
    "push": "put a detector with a model card on the Hugging Face Hub",
    "benchmark": "measure speed and memory on this machine",
    "models": "list the detectors: parameters, cost, published accuracy",
}
_WITHOUT_PLAIN_WORDS = ("compare", "ladder", "ablate", "train")
_OWN_SIGNALS = (*_WITHOUT_PLAIN_WORDS, "serve")
"""Verbs that save or answer before they end."""
_REPLACED = {
    "--processes": "is gone: give several commands the same --output, each its own --device "
    "(docs/comparing.md), or train one detector with torchrun (docs/training.md)",
}


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
        with nullcontext() if verb in _OWN_SIGNALS else _ended_as_interrupted():
            return _run(verb, rest)
    except UserError as mistake:
        print(f"detrlab {printable(verb)}: {mistake}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the output is closed, as by `| head`
        sys.stderr.close()
        return 0
    except Exception as error:
        from detrlab.files import REMEDIES, explain

        if isinstance(error, OSError) and error.errno in REMEDIES:
            told = str(explain(error, error.filename or "a file"))
        elif lacks_memory(error):
            told = (
                "memory ran out: end other programs, raise what `ulimit -v` or `-d` allows, or "
                "use smaller images, fewer at once"
            )
        else:
            raise
        print(f"detrlab {verb}: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"detrlab {verb}: interrupted", file=sys.stderr)
        return 130


@contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what is unfinished is removed, and one line says so.

    Does nothing outside the main thread, where Python delivers no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run(verb: str, arguments: Sequence[str]) -> int:
    import tyro

    if verb in _WITHOUT_PLAIN_WORDS and arguments and not arguments[0].startswith("-"):
        raise UserError(_suggest_flag(verb, arguments[0]))
    for flag in _REPLACED.keys() & {each.partition("=")[0] for each in arguments}:
        raise UserError(f"{flag} {_REPLACED[flag]}")
    command = import_module(f"detrlab.cli.{verb}")
    options = tyro.cli(
        command.Options,
        args=arguments,
        prog=f"detrlab {verb}",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return command.run(options)


def _suggest_flag(verb: str, word: str) -> str:
    """What to write instead of an argument without a flag."""
    from detrlab.presets import PRESETS

    flag = "--data"
    if word in PRESETS:
        flag = "--models" if verb == "compare" else "--model"
    return f"unexpected argument {word!r}; did you mean detrlab {verb} {flag} {word}?"


def _print_help() -> None:
    print("usage: detrlab VERB [--flags]        detrlab VERB --help shows a verb's flags\n")
    width = max(map(len, VERBS))
    for verb, purpose in VERBS.items():
        print(f"  {verb:<{width}}  {purpose}")
    print("\nFirst steps: detrlab compare --recipe tiny    (trains all five on built-in pictures)")
