"""``detrlab push``: a detector with a model card on the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.checkpoints.reading import Imported
    from detrlab.report.card import Judged


@dataclass(frozen=True)
class Options:
    """Put a detector on the Hugging Face Hub, with a model card made from its run.

    The token is the one of 'hf auth login', or HF_TOKEN.
    """

    model: Annotated[str, tyro.conf.Positional]
    """A checkpoint, or the folder of a run."""
    repository: Annotated[str, tyro.conf.Positional]
    """Its name on the Hub, such as OWNER/NAME."""
    data: str | None = None
    """The data it was trained with, for metrics with intervals in the card."""
    license: str | None = None
    """Of the weights, as the Hub names it, such as apache-2.0."""
    add: tuple[str, ...] = ()
    """Further files to put there, such as an export; certificates beside the checkpoint are added
    anyway."""
    private: bool = False
    """Only you can see the repository."""
    update: bool = False
    """Add a commit to a repository that exists."""
    dry_run: bool = False
    """Only write the folder, and send nothing."""
    output: str = "runs/push"
    """The folder to write; nothing in it is overwritten."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""


def run(options: Options) -> int:
    """Push; returns the exit code."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from detrlab.checkpoints.weights import load_detector
    from detrlab.cli.common import fresh_folder, say, show

    try:
        validate_repo_id(options.repository)
    except HFValidationError as error:
        raise UserError(
            f"{options.repository} cannot be the name of a repository: {error}"
        ) from None
    missing = [name for name in options.add if not Path(name).is_file()]
    if missing:
        raise UserError(f"--add {missing[0]}: there is no such file")
    last = Path(options.model) / "weights" / "last.safetensors"
    source = str(last) if last.is_file() else options.model
    imported = load_detector(source)
    judged = _judged(imported, source, options)
    with fresh_folder(options.output) as folder:
        others = _copies(source, options.add, folder)
        for line in _write(imported, judged, others, options, folder):
            say(line)
        if options.dry_run:
            show(f"{folder} holds what would be sent to {options.repository}")
            return 0
        show(_upload(folder, options))
        return 0


def _write(
    imported: Imported, judged: Judged | None, others: list[str], options: Options, folder: Path
) -> list[str]:
    """Weights and card; returns what should be known."""
    from detrlab import files
    from detrlab.checkpoints.convert import convert
    from detrlab.checkpoints.weights import OWN_FILE
    from detrlab.report.card import Card

    checkpoint = imported.checkpoint
    convert(imported, "detrlab", folder / OWN_FILE)
    lines, in_transformers = [], True
    try:
        convert(imported, "transformers", folder / "transformers")
    except UserError as error:
        in_transformers = False
        lines.append(f"without files for transformers: {error}")
    else:
        for file in (folder / "transformers").iterdir():
            file.rename(folder / file.name)
        (folder / "transformers").rmdir()
    provenance = {k: v for k, v in checkpoint.provenance.items() if v is not None}
    card = Card(
        repository=options.repository,
        preset=checkpoint.config.preset,
        classes=checkpoint.classes,
        image_size=checkpoint.preprocessing.image_size,
        threshold=checkpoint.threshold,
        provenance=provenance,
        licence=options.license,
        in_transformers=in_transformers,
        judged=judged,
        others=others,
    )
    files.write_text(folder / "README.md", card.text())
    if options.license is None:
        lines.append("the card names no licence: say one with --license, such as apache-2.0")
    if judged is None or not judged.intervals:
        lines.append("the card has no intervals: name the data with --data to compute them")
    return lines


def _judged(imported: Imported, source: str, options: Options) -> Judged | None:
    """Metrics on the validation split: with intervals if the data is named."""
    from detrlab.report.card import LABELS, Judged

    extra, provenance = imported.checkpoint.extra, imported.checkpoint.provenance
    if options.data is None:
        metrics = extra.get("metrics")
        if not isinstance(metrics, dict):
            return None
        split = str(extra.get("split", "val"))
        return Judged(str(provenance.get("data", "its own data")), split, None, metrics)
    from detrlab.api import load
    from detrlab.cli.common import say
    from detrlab.compare.statistics import compare
    from detrlab.data import batches, open_data
    from detrlab.evaluation.coco import Evaluator, evaluate
    from detrlab.evaluation.foreign import load_predictions
    from detrlab.evaluation.matching import match
    from detrlab.training.distributed import pick_device

    data = open_data(options.data)
    table = data.val.with_classes(imported.checkpoint.classes)
    evaluator = Evaluator(table)
    kept = Path(source).parent.parent / "predictions.json"
    if Path(source).name == "last.safetensors" and kept.is_file():
        evaluator.extend(load_predictions(kept, evaluator.truth).detected)
    else:
        detector = load(source).to(pick_device(options.device))
        say(f"evaluating on {len(table):,} images")
        stream = batches(table, detector.preprocessing, batch=8, seed=0, epoch=0, train=False)
        evaluate(detector.network, detector.scoring, stream, evaluator)
    matches = match(evaluator.truth, evaluator.detected())
    intervals = compare({"this": [matches]}, []).intervals["this"]
    ends = {
        name: (each.low, each.high)
        for name, each in intervals.items()
        if name in LABELS and each.low is not None and each.high is not None
    }
    metrics = evaluator.metrics().to_dict()
    return Judged(data.name, "val", len(table), metrics, ends, data.licences)


def _copies(source: str, names: tuple[str, ...], folder: Path) -> list[str]:
    """Copy further files, and certificates beside the checkpoint; returns their names."""
    from detrlab import files

    beside = Path(source).parent
    found = [Path(name) for name in names]
    if Path(source).is_file():
        found += sorted(p for p in beside.iterdir() if "certificate" in p.name and p.is_file())
    copied: list[str] = []
    for path in found:
        if path.name not in copied:
            with files.replacing(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
            copied.append(path.name)
    return copied


def _upload(folder: Path, options: Options) -> str:
    """Make the repository and send the folder in one commit; returns what to say.

    Raises:
        UserError: no token, no right, no network, or a repository that exists.
    """
    from huggingface_hub import HfApi, errors

    from detrlab.download import is_offline

    if is_offline():
        raise UserError(f"the environment says to stay offline; {folder} holds what is to be sent")
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    name = options.repository
    try:
        made = hub.create_repo(name, private=options.private, exist_ok=True)
        known = hub.model_info(made.repo_id)
        held = {each.rfilename for each in known.siblings or ()} - {".gitattributes"}
        if held and not options.update:  # an empty one is left of a push that was killed
            raise UserError("the repository exists already: --update adds a commit to it")
        if options.private and not known.private:
            raise UserError("the repository exists already and is public: leave out --private")
        hub.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Upload a detector of detrlab"
        )
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reasons = {
            401: "no valid token: log in with 'hf auth login', or set HF_TOKEN",
            403: "your token may not write there",
        }
        told = reasons.get(status) or (str(error).strip() or "no answer").splitlines()[0]
        raise UserError(f"{name} was not sent: {told}; {folder} holds everything") from None
    except Exception as error:  # of the client's own kinds where there is no network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} was not sent: {reason}; {folder} holds everything") from None
    return f"{made}: detrlab predict photo.jpg --model hf:{made.repo_id}"
