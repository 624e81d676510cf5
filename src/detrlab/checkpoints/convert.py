"""Writing checkpoints in the layouts of other tools, or in detrlab's own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch

from detrlab import files
from detrlab.checkpoints import hf, hf_config, hf_realtime, native, official
from detrlab.checkpoints.reading import Imported
from detrlab.checkpoints.recognise import arguments_of
from detrlab.checkpoints.rules import export, listed
from detrlab.errors import UserError, did_you_mean
from detrlab.presets.deformable import DeformableDetrTwoStage
from detrlab.presets.rtdetr import RtDetr


def convert(imported: Imported, to: str, target: str | Path) -> list[str]:
    """Write a checkpoint in another layout, whole or not at all.

    Args:
        imported: the checkpoint, from ``weights.load_detector`` or ``reading.read``.
        to: ``detrlab`` (one ``.safetensors`` file), ``official`` (one ``.pth`` file) or
            ``transformers`` (a folder for ``from_pretrained``).
        target: the file or folder to write; it must not exist yet.

    Returns:
        What was written and what was lost, one sentence each.

    Raises:
        UserError: the target exists, or the other tool has no such detector.
    """
    writers: dict[str, Callable[[native.Checkpoint, Path], list[str]]] = {
        "detrlab": _write_native,
        "official": _write_official,
        "transformers": _write_transformers,
    }
    if to not in writers:
        raise UserError(f"cannot convert to {to!r}{did_you_mean(to, writers)}")
    target = Path(target)
    if target.exists():
        raise UserError(f"{target} exists already: choose another name, or remove it first")
    lines = [
        f"the file does not say {name}: {value} is assumed"
        for name, value in (imported.assumed or {}).items()
    ]
    return [*lines, *writers[to](imported.checkpoint, target)]


def default_target(source: str | Path, to: str) -> Path:
    """Where ``convert`` writes by default: beside the source.

    For a preset or a repository of the Hub, in the working folder.
    """
    text = str(source)
    source = Path(text.removeprefix("hf:").split("/")[-1] if text.startswith("hf:") else text)
    ending = {"detrlab": ".safetensors", "official": ".pth"}.get(to, "")
    return source.with_name(f"{source.stem}-{to}{ending}")


def _write_native(checkpoint: native.Checkpoint, target: Path) -> list[str]:
    path = native.save(
        target,
        checkpoint.state,
        checkpoint.config,
        checkpoint.classes,
        checkpoint.category_ids,
        checkpoint.preprocessing,
        threshold=checkpoint.threshold,
        provenance=checkpoint.provenance,
        extra=checkpoint.extra,
    )
    return [f"wrote {path}"]


def _write_official(checkpoint: native.Checkpoint, target: Path) -> list[str]:
    config = checkpoint.config
    if not official.holds(config):
        raise UserError(
            f"the original repositories have no such detector ({config.preset}): it cannot be "
            "converted to their layout"
        )
    layout = official.layout(config)
    state = export(checkpoint.state, layout)
    written = io.BytesIO()  # torch.save itself reports a full disk as an internal error
    torch.save({"model": state, "args": arguments_of(config)}, written)
    files.write_bytes(target, written.getvalue())
    return [
        f"wrote {target}: {len(state)} tensors of the {layout.name} layout under 'model', settings "
        "under 'args'",
        f"not kept: the names of the {config.num_classes} classes, the image size "
        f"({checkpoint.preprocessing.image_size}) and the normalisation",
        *official.remarks(config),
    ]


def _write_transformers(checkpoint: native.Checkpoint, target: Path) -> list[str]:
    config, state = checkpoint.config, checkpoint.state
    fewer = ""
    if isinstance(config, RtDetr):
        whole = config.decoder_layers
        config, state = hf_realtime.without_unused_layers(config, state)
        if config.decoder_layers < whole:
            fewer = (
                f"not kept: decoder layers after number {config.decoder_layers}, which only train"
            )
    values = hf_config.to_transformers(config, checkpoint.classes)
    preprocessing = hf_config.preprocessing_to_transformers(config, checkpoint.preprocessing)
    layout = hf.layout(config, hf.ON_DISK)
    renamed = export(state, layout, one_name_each=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in renamed.items()}
    # The weights come last: without them, the folder is visibly incomplete.
    files.write_json(target / "config.json", values)
    files.write_json(target / "preprocessor_config.json", preprocessing)
    data = native.serialized(tensors, {"format": "pt"})
    files.write_bytes(target / "model.safetensors", data)
    name = values["architectures"][0]
    lines = [f"wrote {target}: load it with transformers.{name}.from_pretrained"]
    lines += filter(None, [fewer])
    ids = checkpoint.category_ids
    if ids != tuple(range(len(ids))):
        shown = listed([str(number) for number in ids], limit=8, quote=False)
        lines.append(f"not kept: category ids {shown}, since transformers numbers classes from 0")
    if isinstance(config, DeformableDetrTwoStage):
        lines.append(
            "transformers does not train the first stage of a two-stage model: predictions are the "
            "same, but it cannot be fine-tuned there"
        )
    return lines
