"""``--weights`` as a word, a file or ``hf:REPO``: find and load the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detrlab.checkpoints import published
from detrlab.checkpoints.published import ASSETS, Published
from detrlab.checkpoints.reading import HF_INDEX, HF_WEIGHTS, Imported, read, shards_of
from detrlab.checkpoints.start import ClassRows, LoadReport, start_from
from detrlab.config import DataConfig, ModelConfig
from detrlab.download import Progress, UnreachableError, fetch, is_offline, no_progress, verify
from detrlab.errors import UserError, did_you_mean
from detrlab.files import sha256, write_text
from detrlab.presets import PRESETS, build_network

if TYPE_CHECKING:
    from detrlab.models.network import Network

WORDS = ("coco", "imagenet", "coco-backbone", "figures", "none")
HUB = "hf:"
OWN_FILE = "detrlab.safetensors"
"""In a repository of the Hub that ``detrlab push`` made."""
IN_THE_BOX = "deimv2-femto"
"""The preset whose COCO weights are in the package (``benchmarks/packaged_detector.py``)."""


class Start(NamedTuple):
    """A network ready for training.

    Attributes:
        network: with its initial weights.
        report: what happened to every tensor.
        preprocessing: image size and normalisation the weights were trained with; None if
            unknown.
    """

    network: Network
    report: LoadReport
    preprocessing: DataConfig | None


def first_network(
    config: ModelConfig,
    weights: str,
    classes: Sequence[str],
    *,
    class_rows: ClassRows = "auto",
    reinitialise: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = no_progress,
) -> Start:
    """A network with the initial weights that ``--weights`` names.

    Args:
        config: the architecture.
        weights: ``imagenet`` (the backbone), ``none``, ``coco`` (the published detector),
            ``coco-backbone`` (the packaged detector's backbone), ``figures`` (the demo's small
            packaged detector), a file or folder, or ``hf:`` and the name of a repository on the
            Hugging Face Hub.
        classes: the name of each class of the data, by class index.
        class_rows: how the class heads are initialised, see ``start.ClassRows``.
        reinitialise: patterns of tensors to re-initialise.
        seed: of the initial values.
        progress: callback for downloads.

    Raises:
        UserError: the weights cannot be found, or do not fit.
    """
    if weights in ("imagenet", "coco-backbone", "none"):
        for name, given in (("class_rows", class_rows != "auto"), ("reinitialise", reinitialise)):
            if given:
                raise UserError(f"{name} needs a checkpoint, and --weights is {weights!r}")
        pretrained = weights == "imagenet"
        network = build_network(config, pretrained_backbone=pretrained, seed=seed)
        preprocessing = _take_backbone(network, config) if weights == "coco-backbone" else None
        return Start(network, _report_of_initial(network, config, weights), preprocessing)
    likely = {"dilation": config.dilation, "backbone": config.backbone}
    imported = open_weights(
        weights, config.preset, config.backbone, likely=likely, progress=progress
    )
    network, report = start_from(
        imported,
        config,
        classes,
        class_rows=class_rows,
        reinitialise=reinitialise,
        seed=seed,
    )
    return Start(network, report, imported.checkpoint.preprocessing)


def _take_backbone(network: Network, config: ModelConfig) -> DataConfig | None:
    """Copy the backbone of the packaged detector; its preprocessing is returned."""
    packaged = load_detector(IN_THE_BOX).checkpoint
    if config.backbone != packaged.config.backbone:
        raise UserError(
            f"--weights coco-backbone are those of {packaged.config.backbone!r}, and the backbone "
            f"is {config.backbone!r}: --set model.backbone={packaged.config.backbone}"
        )
    own = network.backbone.state_dict()
    given = {name.removeprefix("backbone."): value for name, value in packaged.state.items()}
    network.backbone.load_state_dict({name: given[name] for name in own})
    return packaged.preprocessing


def load_detector(
    source: str | Path,
    weights: str | None = None,
    *,
    backbone: str | None = None,
    progress: Progress = no_progress,
) -> Imported:
    """A trained detector; no tensor is initialised at random.

    Args:
        source: the name of a preset, or a file or folder, or ``hf:`` and a repository.
        weights: for a preset: ``coco`` (the default), a file or folder, or ``hf:...``.
        backbone: for a preset, if it is not the default; for a file, timm's name of the
            backbone if it cannot be recognised.
        progress: callback for downloads.

    Raises:
        UserError: there is no such preset or file, or the weights are of another detector.
    """
    name = str(source)
    if name not in PRESETS:
        if weights is not None:
            raise UserError(
                f"weights {weights!r} were given for {name!r}, which is no preset"
                f"{did_you_mean(name, PRESETS)}"
            )
        if not _is_place(name):
            raise UserError(
                f"{name!r} is neither a checkpoint nor a preset{did_you_mean(name, PRESETS)}"
            )
        return open_weights(name, None, backbone, likely={"backbone": backbone}, progress=progress)
    weights = weights or "coco"
    if weights in ("imagenet", "coco-backbone", "none"):
        raise UserError(
            f"a {name} with weights {weights!r} is not trained: use detrlab.build to train one, "
            "or weights='coco' for a trained detector"
        )
    imported = open_weights(
        weights,
        name,
        backbone,
        told={"dilation": PRESETS[name].model_fields["dilation"].default},
        likely={"backbone": backbone},
        progress=progress,
    )
    found = imported.checkpoint.config
    if found.preset != name:
        raise UserError(
            f"{imported.where} holds a {found.preset}, not a {name}: load it by that name"
        )
    if backbone not in (None, found.backbone):
        raise UserError(f"{imported.where} has backbone {found.backbone!r}, not {backbone!r}")
    return imported


def open_weights(
    weights: str,
    preset: str | None,
    backbone: str | None = None,
    *,
    told: Mapping[str, Any] | None = None,
    likely: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> Imported:
    """Read the weights that a word, a path or ``hf:REPO`` names.

    Args:
        weights: as the user wrote it.
        preset: the detector they are for; needed by ``coco``.
        backbone: of that detector, for ``coco``; its usual one if it is not given.
        told: settings that are known and that a file may not show.
        likely: as ``told``, but guesses.
        progress: callback for downloads.

    Raises:
        UserError: they cannot be found or read.
    """
    likely = {name: value for name, value in (likely or {}).items() if value is not None}
    if weights == "coco":
        if preset is None:
            raise UserError("weights 'coco' need the name of a detector")
        entry = published.published(preset, backbone)
        return read(fetch_published(entry, progress), told=entry.config.to_dict())
    if weights == "figures":
        return read(_require_figures(preset))
    if weights.startswith(HUB):
        return read(fetch_repository(weights.removeprefix(HUB)), told=told, likely=likely)
    if not _is_place(weights):
        raise UserError(
            f"weights {weights!r} are neither a file nor one of {', '.join(WORDS)}, "
            f"hf:REPOSITORY{_closest(weights)}"
        )
    likely = {"preset": preset, **likely}
    return read(Path(weights).expanduser(), told=told, likely=likely)


def adopt_preprocessing(data: DataConfig, weights: DataConfig | None) -> DataConfig:
    """The data's settings with the normalisation that the weights were trained with.

    Image sizes stay: any size works, but another normalisation would not.
    """
    return data if weights is None else data.change(mean=weights.mean, std=weights.std)


def suited_to(config: ModelConfig, weights: str) -> ModelConfig:
    """The architecture as it can be trained from such weights.

    Frozen batch norms need pretrained statistics: without pretrained weights the whole backbone
    trains, norms included.
    """
    if weights != "none":
        return config
    return config.change(backbone_norms="trained", backbone_trains="all")


def fetch_published(entry: Published, progress: Progress = no_progress) -> Path:
    """The published weights: from a cache, a mirror, where they were published, or the Hub.

    Returns:
        A file, or the Hub's folder.

    Raises:
        UserError: they are not on this machine and cannot be downloaded; the message says where
            to put the file.
    """
    here = published.cached(entry)
    if here is not None:
        verify(here, entry.sha256, str(here))
        _require_unchanged(here)
        return here
    target = published.weights_folder() / entry.file
    try:
        found = fetch([entry.url], target, sha256=entry.sha256, progress=progress)
        write_text(_noted(found), sha256(found) + "\n")
        return found
    except UnreachableError as error:
        failure = str(error)
    if entry.hub:
        try:
            return fetch_repository(entry.hub)
        except UserError as error:
            failure = f"{failure}; {error}"
    raise UnreachableError(
        f"the COCO weights of {entry.preset} ({entry.backbone}) are not on this machine and "
        f"cannot be downloaded: {failure}. Download {entry.url} ({entry.file}) on another "
        f"machine and put it at {target}"
    )


def _noted(path: Path) -> Path:
    """Where the checksum of a downloaded file is noted: most were published without one."""
    return path.with_name(f"{path.name}.sha256")


def _require_unchanged(path: Path) -> None:
    """Compare a file with what was downloaded, if detrlab downloaded it.

    Raises:
        UserError: it has changed.
    """
    note = _noted(path)
    if note.is_file() and note.read_text(encoding="utf-8", errors="replace").strip() != sha256(
        path
    ):
        raise UserError(
            f"{path} is not what was downloaded: its sha256 is not the one in {note.name}. Delete "
            "both to download it again, or the note alone if you replaced the file yourself"
        )


def fetch_repository(name: str) -> Path:
    """The folder of a model on the Hugging Face Hub, or detrlab's own file, in the Hub's cache.

    ``HF_ENDPOINT`` (a mirror), ``HF_HOME``, ``HF_HUB_OFFLINE`` and proxies work as everywhere.

    Args:
        name: such as ``facebook/detr-resnet-50``, with ``@revision`` if it is not ``main``.

    Raises:
        UserError: there is no such repository, it holds no weights, or it cannot be reached.
    """
    repository, _, revision = name.partition("@")
    with suppress(UnreachableError):  # without a network, another file may still be in the cache
        if (own := _hub_file(repository, revision, OWN_FILE)) is not None:
            return own
    config = _hub_file(repository, revision, "config.json")
    if config is None:
        raise UserError(f"hf:{name} holds no config.json: it is not a model of transformers")
    _hub_file(repository, revision, "preprocessor_config.json")
    safe, pickled = HF_WEIGHTS
    if _hub_file(repository, revision, safe) is not None:
        return config.parent
    index = _hub_file(repository, revision, HF_INDEX)
    files = [pickled] if index is None else shards_of(index)
    for file in files:
        if _hub_file(repository, revision, file) is None:
            raise UserError(f"hf:{name} holds neither {safe} nor {file}")
    return config.parent


def _hub_file(repository: str, revision: str, file: str) -> Path | None:
    """A file of a repository; None where it has no such file."""
    from huggingface_hub import errors, hf_hub_download

    try:
        path = hf_hub_download(
            repository,
            file,
            revision=revision or None,
            endpoint=os.environ.get("HF_ENDPOINT"),
            local_files_only=is_offline(),
        )
    except errors.LocalEntryNotFoundError:
        raise UnreachableError(
            f"{file} of hf:{repository} is not on this machine, and the Hub cannot be reached: "
            "get the repository's config.json and model.safetensors in another way, and give "
            "the folder they are in"
        ) from None
    except errors.EntryNotFoundError:
        return None
    except errors.RevisionNotFoundError:
        raise UserError(f"hf:{repository} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"there is no repository hf:{repository}, or it is private: log in with 'hf auth login'"
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"hf:{repository} cannot be the name of a repository: {error}") from None
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnreachableError(f"hf:{repository} cannot be downloaded ({reason})") from None
    return Path(path)


def figures(preset: str | None) -> Path:
    """Where the package keeps the small weights that the demo starts from.

    ``benchmarks/demo_weights.py`` makes them.
    """
    return ASSETS / f"figures-{preset}.safetensors"


def _require_figures(preset: str | None) -> Path:
    path = figures(preset)
    if not path.is_file():
        names = ", ".join(name for name in PRESETS if figures(name).is_file())
        raise UserError(
            f"there are no packaged weights 'figures' of {preset}, only of {names}: "
            "start from --weights imagenet"
        )
    return path


def _is_place(text: str) -> bool:
    """Whether it names a file, a folder or a repository, or looks as if it should."""
    path = Path(text).expanduser()
    return (
        text.startswith(HUB)
        or path.exists()
        or path.name != text
        or path.suffix in (".pth", ".pt", ".bin", ".safetensors")
    )


def _closest(word: str) -> str:
    hint = did_you_mean(word, WORDS)
    return hint if hint.endswith("?") else ""


def _report_of_initial(network: Network, config: ModelConfig, weights: str) -> LoadReport:
    names = list(network.state_dict())
    backbone = [name for name in names if name.startswith("backbone.")]
    if weights in ("imagenet", "coco-backbone"):
        rest = dict.fromkeys(names[len(backbone) :], "only the backbone is pretrained")
        origin = {"imagenet": "ImageNet", "coco-backbone": f"COCO, of {IN_THE_BOX}"}[weights]
        return LoadReport(config.backbone, origin, tuple(backbone), reinitialised=rest)
    notes = ["training from scratch: expect to need far more epochs and images"]
    if config.backbone_norms == "frozen":
        notes.append(
            "the backbone's norms are frozen at untrained statistics: "
            "use backbone_norms=trained and backbone_trains=all"
        )
    random = dict.fromkeys(names, "no weights are loaded")
    return LoadReport("no weights", "none", reinitialised=random, notes=tuple(notes))
