"""The real-time originals' numbers: records of ``witness.py``, what is kept of one, and files.

    python -m tests.models.realtime_parity [CASE ...]

writes ``parity_realtime/*.npz``.

Making them needs the authors' code (``witness.py`` in ``../shared/originals``); reading them needs
only the repository. In the files, weights and pixels follow from their names and a seed and are
not stored, except for the statistics of the batch norms, which depend on the images.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from tests.models.make_parity_fixtures import ORIGINALS, digest, drawn, read, write
from torch import Tensor

FOLDER = Path(__file__).with_name("parity_realtime")
SEEDS = {
    "rt-detr-r18": 2,
    "rt-detr-v2-r18": 3,
    "d-fine-n": 1,
    "deim-n": 1,
    "deimv2-femto": 1,
    "deimv2-n": 1,
}
"""The cases whose numbers are stored, and their seeds."""

STATISTICS = ("running_mean", "running_var")
CONSTANTS = ("decoder.up", "decoder.reg_scale")
"""Parameters that are never trained."""
SECTIONS = {
    "decoder": (
        *("RTDETRTransformer", "RTDETRTransformerv2"),
        *("DFINETransformer", "DEIMTransformer"),
    ),
    "encoder": ("LiteEncoder", "HybridEncoder"),
    "criterion": ("SetCriterion", "RTDETRCriterionv2", "DEIMCriterion", "DFINECriterion"),
    "backbone": ("PResNet", "HGNetv2"),
}
"""The parts of a configuration that are compared, and their names in the originals."""


# --- names ----------------------------------------------------------------------------------


def our_set(path: str, layers: int, ahead: int = 0) -> str:
    """The name of our supervised set for an output in a record, or the end of a loss's name.

    Args:
        path: of the output, or the end of a loss's name.
        layers: of the decoder.
        ahead: predictions before the first layer's, such as the box of D-FINE's first layer.
    """
    if path in ("", "final"):
        return "final"
    if path.endswith(("pre", "pre_outputs")):
        return "denoising_layer0" if "dn" in path else "layer0"
    kind, _, number = path.rpartition("_" if path.startswith("_") else ".")
    index = int(number)
    layer = "final" if index == layers - 1 else f"layer{index + ahead}"
    if kind in ("_dn", "dn_aux_outputs", "dn_outputs"):
        return f"denoising_{layer}"
    if kind in ("_enc", "enc_aux_outputs"):
        return "proposal"
    assert kind in ("_aux", "aux_outputs"), path
    return "proposal" if layer == "final" else layer  # RT-DETR lists the encoder's last


TERMS = {"vfl": "class", "mal": "class", "bbox": "box", "giou": "giou"}
TERMS |= {"fgl": "fine", "ddf": "distil"}


def our_loss(name: str, layers: int, ahead: int = 0) -> tuple[str, str]:
    """Set and term of an original's loss."""
    match = re.fullmatch(r"loss_([a-z]+)(.*)", name)
    assert match is not None, name
    return our_set(match[2], layers, ahead), TERMS[match[1]]


def output_paths(outputs: dict) -> dict[str, dict]:
    """Every set of predictions of an original by its path."""
    paths = {"final": outputs}
    for name, value in outputs.items():
        if name.endswith("outputs") and isinstance(value, list):
            paths |= {f"{name}.{index}": each for index, each in enumerate(value)}
        elif name.endswith("pre_outputs"):
            paths[name] = value
    return paths


def section(tree: dict, part: str) -> dict:
    """One part of an original's configuration."""
    return next((tree[name] for name in SECTIONS[part] if name in tree), {})


def num_layers(tree: dict) -> int:
    """Decoder layers."""
    decoder = section(tree, "decoder")
    return decoder.get("num_layers") or decoder["num_decoder_layers"]


def num_ahead(tree: dict) -> int:
    """Predictions before the first layer's."""
    return 1 if {"DFINETransformer", "DEIMTransformer"} & tree.keys() else 0


# --- records --------------------------------------------------------------------------------


def live(name: str, **options) -> dict:
    """A record of the original, made now; see ``witness.make``."""
    sys.path.insert(0, str(ORIGINALS))
    try:
        import witness
    finally:
        sys.path.remove(str(ORIGINALS))
    return witness.make(name, **options)


def summarise(record: dict) -> tuple[dict, dict[str, Tensor]]:
    """What is compared: plain values and tensors."""
    train, tree = record["train"], record["config"]["tree"]
    layers, ahead = num_layers(tree), num_ahead(tree)
    tensors = {
        f"eval.{key}": record["eval"]["outputs"][f"pred_{key}"] for key in ("logits", "boxes")
    }
    for path, each in output_paths(train["outputs"]).items():
        name = our_set(path, layers, ahead)
        tensors[f"logits.{name}"], tensors[f"boxes.{name}"] = (
            each["pred_logits"],
            each["pred_boxes"],
        )
    if train["denoising"]:
        draws = [each["value"] for each in train["denoising"]["draws"]]
        tensors |= {f"noise.{index}": each for index, each in enumerate(draws)}
    for call in train["matching"]:
        for image, pairs in enumerate(call["indices"]):
            name = our_set(call["output"], layers, ahead)
            tensors[f"pairs.{name}.{image}"] = torch.stack(list(pairs))
    for image, target in enumerate(record["targets"]):
        tensors |= {f"target.{key}.{image}": target[key] for key in ("labels", "boxes")}
    for image, found in enumerate(record["eval"]["detections"]):
        tensors |= {f"found.{key}.{image}": found[key] for key in ("scores", "labels", "boxes")}
    gradients = {name: digest(name, each) for name, each in record["grads"].items()}
    for index, part in enumerate(("norms", "products")):
        tensors[f"gradient.{part}"] = torch.stack([each[index] for each in gradients.values()])
    tensors["gradient.elements"] = torch.cat([each[2] for each in gradients.values()])
    after = record["buffers_after"]
    tensors["statistics"] = torch.cat([after[name] for name in after if name.endswith(STATISTICS)])
    values = {
        "name": record["name"],
        "source": [record["repository"], record["commit"]],
        "classes": tree["num_classes"],
        "tree": {name: tree[name] for names in SECTIONS.values() for name in names if name in tree},
        "sizes": record["sizes"].tolist(),
        "state": [(name, tuple(each.shape)) for name, each in record["state_dict"].items()],
        "frozen": record["frozen"],
        "gradients": [(name, tuple(each.shape)) for name, each in record["grads"].items()],
        "losses": {name: float(each) for name, each in train["losses"].items()},
        "late": {
            name: float(each) for name, each in train.get("late", {"losses": {}})["losses"].items()
        },
        "total": float(train["total"]),
        "gradient_norm": float(record["grad_norm"]),
    }
    return values, tensors


# --- files ----------------------------------------------------------------------------------


def weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A random weight under its name in the original, large enough to show every mistake."""
    noise = drawn(name, shape, seed).double()
    if name.endswith("denoising_class_embed.weight"):
        noise[-1] = 0.0  # the class of empty places
    elif name.endswith("sampling_offsets.bias"):
        noise = 2 * noise
    elif len(shape) > 1:
        rough = "sampling_offsets" in name or "bbox_head" in name
        gain = 2.0 if "score_head" in name else 0.5 if rough else 1.0
        noise = noise * (gain * (3 / shape[1:].numel()) ** 0.5)
    elif name.endswith(("weight", "scale")):  # of a norm
        noise = 1.0 + 0.3 * noise
    else:
        noise = 0.3 * noise - (3.0 if "score_head" in name else 0.0)
    return noise.float()


def pixels(size: tuple[int, int], seed: int) -> Tensor:
    """Three images of (height, width), in 0 to 1."""
    return (1 + drawn("images", (3, 3, *size), seed)) / 2


def run_original(name: str, seed: int, *, double: bool = True) -> dict:
    """A record with weights and pixels by name; it needs a process of its own."""
    sys.path.insert(0, str(ORIGINALS))
    import witness

    def randomise(model, _seed):
        with torch.no_grad():
            for parameter, each in model.named_parameters():
                if not parameter.endswith(CONSTANTS):
                    each.copy_(weight(parameter, each.shape, seed))

    witness.randomise = randomise
    witness._images = lambda case, _family, _small, draw: pixels(tuple(case.image_size), draw)
    record = witness.run(name, seed, True, double, True, None)
    assert record["config"]["enc_output_bias_redrawn"] == 0, "take another seed"
    assert torch.equal(
        record["pixel_values"].float(), pixels(record["pixel_values"].shape[2:], seed)
    )
    return record


def store(name: str, path: Path) -> None:
    """Write the numbers of one case, in single precision where that is enough."""
    record = run_original(name, SEEDS[name])
    values, tensors = summarise(record)
    small = {torch.float64: torch.float32, torch.int64: torch.int16, torch.int32: torch.int16}
    kept = {
        each: value
        if each.startswith("gradient.n")
        else value.to(small.get(value.dtype, value.dtype))
        for each, value in tensors.items()
    }
    for each, value in record["state_dict"].items():
        if each.endswith((*STATISTICS, *CONSTANTS)):
            kept[f"state.{each}"] = value.float()
    first = {each: re.sub(r"(?<=dec_bbox_head\.)\d", "0", each) for each, _ in values["state"]}
    state = record["state_dict"]
    values["aliases"] = {
        each: other
        for each, other in first.items()
        if each != other and torch.equal(state[each], state[other])
    }
    values |= {"seed": SEEDS[name], "image_size": tuple(record["pixel_values"].shape[2:])}
    write(path, values, kept)


def main() -> None:
    """The command line; every case in a process of its own: the packages' names collide."""
    names = sys.argv[1:] or list(SEEDS)
    FOLDER.mkdir(exist_ok=True)
    if names[0] == "--here":
        store(names[1], FOLDER / f"{names[1]}.npz")
        return
    for name in names:
        subprocess.run([sys.executable, "-m", __spec__.name, "--here", name], check=True)
        print(f"{name}: {(FOLDER / f'{name}.npz').stat().st_size / 1024:.0f} KB")


def stored(name: str) -> tuple[dict, dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Values, tensors, state dict and pixels of a file."""
    values, tensors = read(FOLDER / f"{name}.npz")
    state = {}
    for each, shape in values["state"]:
        if f"state.{each}" in tensors:
            state[each] = tensors.pop(f"state.{each}")
        elif each.endswith(("weight", "bias", ".scale")):
            first = values.get("aliases", {}).get(each, each)
            state[each] = weight(first, torch.Size(shape), values["seed"])
    return values, tensors, state, pixels(tuple(values["image_size"]), values["seed"])


if __name__ == "__main__":
    main()
