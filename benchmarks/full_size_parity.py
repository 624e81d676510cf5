"""DINO at its published size on photographs: ours beside the authors' code, double precision.

    python benchmarks/full_size_parity.py --originals DIR --photos A B C --output FILE.json

DIR holds ``witness.py`` and the repositories. ResNet-50, 900 queries, six layers each, 91 class
rows; random weights, because the published ones are not needed to compare two programs. Compared
are the outputs of every layer, the proposals, every loss, the matching, and every gradient.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from detrlab.checkpoints import official
from detrlab.checkpoints.rules import translate_strictly
from detrlab.config import DataConfig, TrainConfig
from detrlab.data.transforms import eval_transform
from detrlab.images import read_picture
from detrlab.models.queries.denoising import Noise
from detrlab.presets import build_network, model_config
from detrlab.structures import ImageBatch, Target

PRESET = "dino-4scale"
COUNTS = (4, 1, 0)
"""Objects of the three images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--originals", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs=3, required=True)
    parser.add_argument("--short-side", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    transform = eval_transform(DataConfig(image_size=options.short_side))
    images = [transform(read_picture(path)) for path in options.photos]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        record = pool.submit(original, options.originals, images, options.seed).result()
    report = {
        "model": PRESET,
        "repository": record["repository"],
        "commit": record["commit"],
        "images": [list(image.shape[1:]) for image in images],
        "seed": options.seed,
        "parameters": sum(value.numel() for value in record["grads"].values()),
        "worst": compare(record),
    }
    print(json.dumps(report, indent=1))
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def original(folder, images, seed):
    """The record of the authors' code; patched, so it needs a process of its own."""
    sys.path.insert(0, str(folder))
    import witness

    class Unwatched:  # every module's output would need gigabytes
        def __init__(self, *_):
            self.seen = {}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    witness.Watch = Unwatched
    witness._images = lambda *_: [image.clone() for image in images]
    return witness.run(PRESET, seed, False, True, True, None, COUNTS)


def compare(record):
    """The largest difference of each kind, relative to the largest entry or the norm."""
    torch.set_default_dtype(torch.float64)
    config = model_config(PRESET, record["config"]["tree"]["num_classes"])
    network = build_network(config).double().train()
    layout = official.layout(config)
    state = translate_strictly(record["state_dict"], layout, network.state_dict())
    network.load_state_dict(state, strict=True)
    images = ImageBatch(record["pixel_values"], record["mask"])
    targets = [Target(each["labels"], each["boxes"]) for each in record["targets"]]
    replay(network, record["train"]["denoising"]["draws"], config, sum(COUNTS))
    output = network(images, targets)
    losses = config.criterion(TrainConfig())(output, targets)
    losses.total.backward()
    theirs = record["train"]
    suffixes = names(config.decoder_layers)
    found = {each.name: each.predictions for each in output.sets}
    worst = {"logits": 0.0, "boxes": 0.0, "proposals": 0.0, "losses": 0.0}
    for name, (path, suffix) in suffixes.items():
        expected = theirs["outputs"]
        if name.startswith("denoising"):
            expected = theirs["outputs"]["dn_meta"]["output_known_lbs_bboxes"]
        for step in path:
            expected = expected[step]
        kinds = ("proposals", "proposals") if name == "proposal" else ("logits", "boxes")
        for kind, ours, key in zip(
            kinds, found[name][:2], ("pred_logits", "pred_boxes"), strict=True
        ):
            gap = (ours.detach() - expected[key]).abs().max() / expected[key].abs().max()
            worst[kind] = max(worst[kind], gap.item())
        for term, key in (("class", "ce"), ("box", "bbox"), ("giou", "giou")):
            wanted = theirs["losses"][f"loss_{key}{suffix}"].item()
            gap = abs(losses.terms[name][term].item() - wanted) / max(abs(wanted), 1e-9)
            worst["losses"] = max(worst["losses"], gap)
    worst["gradients, of the norm"] = gradients(network, layout, record)
    wanted = [each["indices"] for each in theirs["matching"]]
    ours = [[(m.queries, m.objects) for m in each] for each in losses.matches.values()]
    same = sum(
        all(
            torch.equal(a, b)
            for pair, other in zip(mine, his, strict=True)
            for a, b in zip(pair, other, strict=True)
        )
        for mine in ours
        for his in wanted
    )
    worst["sets matched alike"] = f"{min(same, len(ours))} of {len(ours)}"
    return worst


def names(layers):
    """Our set -> where the original's lies, and the suffix of its losses."""
    found = {"final": ((), ""), "proposal": (("interm_outputs",), "_interm")}
    found["denoising_final"] = ((), "_dn")
    for index in range(layers - 1):
        found[f"layer{index}"] = (("aux_outputs", index), f"_{index}")
        found[f"denoising_layer{index}"] = (("aux_outputs", index), f"_dn_{index}")
    return found


def replay(network, draws, config, objects):
    """Let the denoising queries use the noise that the original drew."""
    chosen, labels, signs, parts = (each["value"] for each in draws)
    chosen = chosen.view(-1, objects)
    new = torch.zeros(chosen.shape, dtype=torch.int64)
    new[chosen < config.label_noise / 2] = labels.long()
    signs = signs.view(-1, objects, 4) * 2.0 - 1.0
    noise = Noise(chosen, new, signs, parts.view(-1, objects, 4))
    network.queries.draw = lambda _targets, _groups: noise


def gradients(network, layout, record):
    worst, norm = 0.0, record["grad_norm"].item()
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            continue
        theirs = next(
            record["grads"][each] for (each,) in layout.names(name) if each in record["grads"]
        )
        worst = max(worst, (parameter.grad - theirs).norm().item() / norm)
    return worst


if __name__ == "__main__":
    main()
