"""The original authors' numbers for the presets they can build, for test_parity.py.

    python tests/models/make_parity_fixtures.py [PRESET ...]     # writes tests/models/parity/*.npz

Making them needs the authors' code (``witness.py`` in ``../shared/originals``); reading them needs
only the repository. The originals run in double precision, so that the numbers do not depend on
the processor. Weights and pixels follow from their names and a seed (``drawn``) and are not
stored. Of each gradient the files hold the norm, the product with a random tensor and
``SAMPLES`` elements; of the encoder's memory, elements of the cells that are not padding. The
noise of DINO's denoising queries is stored as the original drew it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).with_name("parity")
ORIGINALS = Path(__file__).resolve().parents[3] / "shared" / "originals"
# (height, width) of the images before padding: wide ones, so that the proposals of the first and
# last cells of a row lie too close to the edge to be valid.
SIZES = ((64, 416), (56, 320), (40, 208))
SAMPLES = 16
MEMORY_SAMPLES = 4096

_DEFORMABLE, _DINO = "deformable-detr", "dino-4scale"
_ONCE = {"use_detached_boxes_dec_out": True}  # look forward once
# preset: the case of witness.py, what differs from it, and the seed of the stored numbers: one at
# which no activation lies so near to zero that single precision puts it on the other side.
CASES = {
    "detr": ("detr", {}, 2),
    "detr-dc5": ("detr-dc5", {}, 2),
    _DEFORMABLE: (_DEFORMABLE, {}, 3),
    f"{_DEFORMABLE}-refine": (f"{_DEFORMABLE}-refine", {}, 3),
    f"{_DEFORMABLE}-two-stage": (f"{_DEFORMABLE}-two-stage", {}, 3),
    f"{_DEFORMABLE}-single-scale": (_DEFORMABLE, {"num_feature_levels": 1}, 3),
    f"{_DEFORMABLE}-single-scale-dc5": (
        _DEFORMABLE,
        {"num_feature_levels": 1, "dilation": True},
        3,
    ),
    "cdn-deformable-detr": (_DINO, {**_ONCE, "embed_init_tgt": False}, 2),
    "mixed-deformable-detr": (_DINO, _ONCE, 2),
    _DINO: (_DINO, {}, 2),
}
SETS = {
    "aux_outputs.0": "_0",
    "aux_outputs.1": "_1",
    "final": "",
    "enc_outputs": "_enc",
    "interm_outputs": "_interm",
    "denoising.aux_outputs.0": "_dn_0",
    "denoising.aux_outputs.1": "_dn_1",
    "denoising.final": "_dn",
}
"""The sets of predictions: name in a witness record -> suffix of the original's loss names."""
COUNTS = (4, 1, 0)
"""Objects of each image."""


_EMBEDDINGS = ("query_embed.weight", "level_embed", "tgt_embed.weight", "label_enc.weight")


def drawn(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform values in [-1, 1) that follow from the name and the seed; exact in float32."""
    raw = np.random.Philox(key=[zlib.crc32(name.encode()), seed]).random_raw(int(np.prod(shape)))
    return torch.from_numpy(((raw >> 40) / 2.0**23 - 1).reshape(shape)).float()


def weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A random weight under its name in the original, large enough to show every mistake."""
    noise = drawn(name, shape, seed).double()
    norm = any(part in name for part in ("norm", ".bn", "downsample.1.")) or (
        name.startswith("input_proj") and name.split(".")[-2] == "1" and name.count(".") == 3
    )
    if name.endswith("running_var"):
        noise = 1.1 + 0.5 * noise
    elif norm:
        noise = (1.0 if name.endswith("weight") else 0.0) + 0.3 * noise
    elif name.endswith("sampling_offsets.bias"):
        noise = 2 * noise
    elif len(shape) > 1 and not name.endswith(_EMBEDDINGS):
        gain = 1.4 if len(shape) == 4 else 1.0
        if "multihead_attn" in name:
            gain = 3.0  # otherwise DETR's queries would all give nearly the same answer
        noise = noise * (gain * (3 / np.prod(shape[1:])) ** 0.5)
    elif len(shape) == 1:
        noise = 0.3 * noise - (3.0 if re.search(r"class_embed\.\d", name) else 0.0)
    return noise.float()


def images(seed: int) -> list[Tensor]:
    """The pixels of the three images."""
    return [2 * drawn(f"image {i}", (3, *size), seed) for i, size in enumerate(SIZES)]


def spread(tensor: Tensor, count: int) -> Tensor:
    """At most ``count`` elements, spread evenly over the tensor."""
    flat = tensor.flatten()
    step = max(1, len(flat) // count)
    return flat[step // 2 :: step][:count]


def digest(name: str, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the fixtures keep of one gradient: norm, product with a random tensor, elements."""
    random = drawn(f"projection {name}", tuple(gradient.shape), 0).to(gradient)
    return gradient.norm(), (gradient * random).sum(), spread(gradient, SAMPLES)


# --- running the originals ------------------------------------------------------------------


def run_original(
    preset: str, seed: int, planes: tuple[int, ...], double: bool, counts: tuple[int, ...]
) -> dict:
    """A witness record; patches the originals, so it needs a process of its own."""
    sys.path.insert(0, str(ORIGINALS))
    import torchvision
    import witness

    class ResNet(torchvision.models.resnet.ResNet):
        def _make_layer(self, block, width, *args, **options):
            return super()._make_layer(
                block, planes[(width // 64).bit_length() - 1], *args, **options
            )

    def stand_in(_small):
        def resnet50(pretrained, **options):  # noqa: ARG001
            return ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 2], **options)

        torchvision.models.resnet50 = resnet50

    def tell_channels(base):  # those of ResNet-50 are hard-coded
        original = base.__init__

        def __init__(self, *args, **options):  # noqa: N807
            original(self, *args, **options)
            several = isinstance(self.num_channels, list)
            channels = [4 * each for each in planes]
            self.num_channels = channels[-len(self.num_channels) :] if several else channels[-1]

        base.__init__ = __init__

    def enter(*names):
        modules = enter.original(*names)
        holders = {"main": "models.backbone", "models.dino.dino": "models.dino.backbone"}
        for name in set(names) & set(holders):
            tell_channels(sys.modules[holders[name]].BackboneBase)
        return modules

    def randomise(model, _seed):
        with torch.no_grad():
            for name, each in [*model.named_parameters(), *model.named_buffers()]:
                each.copy_(weight(name, tuple(each.shape), seed))

    enter.original = witness._import
    witness._import, witness._resnet_standin, witness.randomise = enter, stand_in, randomise
    used = types.SimpleNamespace(seed=seed)

    def draw(_case, _family, _small, draw_seed):
        used.seed = draw_seed
        return images(draw_seed)

    witness._images = draw
    case, changes, _ = CASES[preset]
    record = witness.run(case, seed, True, double, True, changes or None, counts)
    assert record["config"]["enc_output_bias_redrawn"] == 0, "take another seed"
    assert record["train"]["targets_unchanged"]
    record["image_seed"] = used.seed
    return record


def _memory(record: dict) -> Tensor:
    """Elements of the encoder's output at the cells that are not padding."""
    seen = record["train"]["intermediate"]
    last = max(n for n in seen if re.fullmatch(r"transformer\.encoder\.layers\.\d+", n))
    (memory,) = seen[last]
    maps = seen["backbone"][0][0]
    masks = [each["mask"] for each in maps]
    while len(masks) < record["config"]["tree"].get("num_feature_levels", 1):
        shape = seen[f"input_proj.{len(masks)}"][0].shape[-2:]
        mask = record["mask"][None].to(memory.dtype)
        masks.append(torch.nn.functional.interpolate(mask, size=shape)[0].bool())
    visible = ~torch.cat([each.flatten(1) for each in masks], 1)
    tokens = memory if memory.shape[:2] == visible.shape else memory.transpose(0, 1)
    return spread(tokens[visible], MEMORY_SAMPLES)


def summarise(preset: str, seed: int, record: dict) -> tuple[dict, dict[str, Tensor]]:
    """What the test compares: plain values and tensors."""
    train, arguments = record["train"], record["config"]["tree"]
    outputs = train["outputs"]
    tensors = {"memory": _memory(record).float()}
    denoising = outputs.get("dn_meta", {}).get("output_known_lbs_bboxes")
    sets = {name: outputs[name] for name in ("enc_outputs", "interm_outputs") if name in outputs}
    for prefix, each in (("", outputs), ("denoising.", denoising)):
        if each:
            sets[f"{prefix}final"] = each
            sets |= {f"{prefix}aux_outputs.{i}": aux for i, aux in enumerate(each["aux_outputs"])}
    for path, each in sets.items():
        tensors[f"logits{SETS[path]}"] = each["pred_logits"].float()
        tensors[f"boxes{SETS[path]}"] = each["pred_boxes"].float()
    if denoising:
        chosen, labels, signs, parts = (each["value"] for each in train["denoising"]["draws"])
        tensors["noise.chosen"], tensors["noise.parts"] = chosen.float(), parts.float()
        tensors["noise.labels"], tensors["noise.signs"] = labels.short(), signs.to(torch.int8)
    for call in train["matching"]:
        suffix = SETS[call["output"].removesuffix("_for_matching_pre")]
        pairs = [torch.stack(each) for each in call["indices"]]
        for image, each in enumerate(pairs):
            tensors[f"pairs{suffix}.{image}"] = each.short()
    for image, target in enumerate(record["targets"]):
        tensors[f"labels.{image}"] = target["labels"].short()
        tensors[f"target_boxes.{image}"] = target["boxes"].float()
    for image, found in enumerate(record["eval"]["detections"]):
        tensors[f"detected_scores.{image}"] = found["scores"].float()
        tensors[f"detected_labels.{image}"] = found["labels"].short()
        tensors[f"detected_boxes.{image}"] = found["boxes"].float()
    gradients = {name: digest(name, each) for name, each in record["grads"].items()}
    for index, part in enumerate(("norms", "products")):
        tensors[f"gradient_{part}"] = torch.stack([each[index] for each in gradients.values()])
    tensors["gradient_elements"] = torch.cat([each[2] for each in gradients.values()]).float()
    first_names: dict[int, str] = {}
    state = [
        (name, tuple(each.shape), first_names.setdefault(each.data_ptr(), name))
        for name, each in record["state_dict"].items()
    ]
    wanted = (
        "dilation",
        "num_feature_levels",
        "with_box_refine",
        "two_stage",
        "hidden_dim",
        "num_classes",
    )
    wanted += ("nheads", "num_queries", "enc_n_points", "dec_n_points", "dn_number")
    wanted += ("dn_label_noise_ratio", "dn_box_noise_scale", "embed_init_tgt", *_ONCE)
    values = {
        "preset": preset,
        "seed": seed,
        "image_seed": record["image_seed"],
        "source": [record["repository"], record["commit"]],
        "arguments": {name: arguments[name] for name in wanted if name in arguments},
        "sizes": record["sizes"].tolist(),
        "state": state,
        "gradients": list(gradients),
        "losses": {name: float(each) for name, each in train["losses"].items()},
        "total": float(train["total"]),
        "gradient_norm": float(record["grad_norm"]),
    }
    return values, tensors


# --- files ----------------------------------------------------------------------------------


def write(path: Path, values: dict, tensors: dict[str, Tensor]) -> None:
    """One compressed file; the plain values lie in it as JSON."""
    text = np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)
    arrays = {name: each.numpy() for name, each in tensors.items()}
    np.savez_compressed(path, **arrays, values=text)


def read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """What ``write`` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    values = json.loads(arrays.pop("values").tobytes())
    return values, {name: torch.from_numpy(each) for name, each in arrays.items()}


def make(
    preset: str,
    path: Path,
    seed: int,
    planes: tuple[int, ...],
    dtype: str,
    counts: tuple[int, ...] = COUNTS,
) -> None:
    """Run one original in a process of its own: their packages' names collide."""
    command = [sys.executable, __file__, preset, "--out", str(path), "--seed", str(seed)]
    command += ["--dtype", dtype, "--planes", *map(str, planes), "--counts", *map(str, counts)]
    subprocess.run(command, check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", choices=[[], *CASES], default=[])
    parser.add_argument("--out", type=Path, help="write one preset here, in this process")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--planes", type=int, nargs=4, default=(8, 16, 24, 32))
    parser.add_argument("--counts", type=int, nargs=3, default=COUNTS)
    options = parser.parse_args()
    if options.out:
        (preset,) = options.presets
        planes, double = tuple(options.planes), options.dtype == "float64"
        counts = tuple(options.counts)
        record = run_original(preset, options.seed, planes, double, counts)
        write(options.out, *summarise(preset, options.seed, record))
        return
    FOLDER.mkdir(exist_ok=True)
    for preset in options.presets or CASES:
        path = FOLDER / f"{preset}.npz"
        seed = CASES[preset][2] if options.seed is None else options.seed
        make(preset, path, seed, options.planes, options.dtype)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
