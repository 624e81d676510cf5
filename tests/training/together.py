"""What each of several processes runs in the tests of training together; not a test itself."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch

STEPS = 3
IMAGES = 8
HERE = Path(__file__).resolve()


def launch(world, *arguments):
    """Start ``world`` processes of this file that find each other; the arguments are strings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, str(HERE), *map(str, arguments)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def synthetic_batch(step, *, empty_odd=False, objects=None):
    """Eight equally large images.

    Args:
        step: seeds the batch.
        empty_odd: every second image has no objects.
        objects: of every image; by default they differ.
    """
    from detrlab.data.batching import Batch
    from detrlab.structures import ImageBatch, Target

    draw = torch.Generator().manual_seed(step)
    targets = []
    for image in range(IMAGES):
        count = 0 if empty_odd and image % 2 else objects or 1 + (image * 7 + step) % 4
        targets.append(
            Target(
                torch.randint(3, (count,), generator=draw),
                torch.rand(count, 4, generator=draw) * 0.3 + 0.3,
            )
        )
    images = ImageBatch(
        torch.randn(IMAGES, 3, 64, 64, generator=draw),
        torch.zeros(IMAGES, 64, 64, dtype=torch.bool),
    )
    return Batch(images, tuple(targets), tuple(range(IMAGES)), ((64, 64),) * IMAGES)


def share_of(batch, rank, world):
    from detrlab.structures import ImageBatch

    return batch._replace(
        images=ImageBatch(*(each[rank::world] for each in batch.images)),
        targets=batch.targets[rank::world],
        image_ids=batch.image_ids[rank::world],
        original_sizes=batch.original_sizes[rank::world],
    )


CASES = {
    "detr": {"preset": "detr"},
    "two-stage": {"preset": "deformable-detr-two-stage"},
    "one process sees no object": {"preset": "deformable-detr-two-stage", "empty_odd": True},
    "no auxiliary losses": {"preset": "deformable-detr-refine", "auxiliary": False},
    "denoising": {"preset": "dino-4scale", "changes": {"levels": 3}},
    "denoising where one process sees no object": {
        "preset": "dino-4scale",
        "empty_odd": True,
        "changes": {"levels": 3},
    },
    "dropout": {"preset": "detr", "changes": {"dropout": 0.3}},
    "bfloat16": {"preset": "deformable-detr", "precision": "bfloat16"},
    "trained norms": {
        "preset": "rt-detr-r18",
        "changes": {"encoder_width": 64, "encoder_ffn_width": 32, "dropout": 0.1},
    },
    "agreed pairs": {
        "preset": "d-fine-n",
        "changes": {"encoder_width": 64, "encoder_ffn_width": 32},
    },
}
NOT_CUT = {"trained norms", "agreed pairs"}
"""A norm sees the images of one micro-batch; the pairs of later ones are not known yet."""
ROUNDING = {"bfloat16": 2e-2, "trained norms": 1e-3, "agreed pairs": 1e-3}
"""How far results of a case may differ, relative to the largest; 1e-5 in float32."""


def steps(
    processes,
    preset,
    *,
    micro_batch=None,
    auxiliary=True,
    precision="float32",
    changes=None,
    **batch,
):
    """A few steps of a tiny detector: the reports, the last gradients, the weights."""
    from detrlab.config import DataConfig, TrainConfig
    from detrlab.models.prepare import prepare
    from detrlab.presets import build_network, model_config
    from detrlab.training.folder import RunConfig
    from detrlab.training.loop import build_engine

    levels = {"levels": 3} if "deformable" in preset else {}
    config = RunConfig(
        model=model_config(
            preset,
            3,
            backbone="test_resnet",
            width=64,
            num_heads=2,
            ffn_width=32,
            encoder_layers=1,
            decoder_layers=2,
            num_queries=6,
            **{"dropout": 0.0, **levels, **(changes or {})},
        ),
        train=TrainConfig(
            batch=IMAGES,
            micro_batch=micro_batch,
            learning_rate=1e-3,
            auxiliary_losses=auxiliary,
            precision=precision,
            weights="none",
        ),
        data=DataConfig(),
    )
    network = prepare(build_network(config.model, seed=0)).train()
    engine = build_engine(network, config, STEPS, processes)
    reports = []
    for step in range(STEPS):
        share = share_of(synthetic_batch(step, **batch), processes.rank, processes.world)
        report = engine.step(share, step)
        reports.append({**report.measures, "norm": report.norm})
    gradients = {
        name: each.grad for name, each in network.named_parameters() if each.grad is not None
    }
    return reports, gradients, network.state_dict()


def run_steps(out):
    from detrlab.training.distributed import join

    # Before the process joins, so that it is called after what that leaves for the end.
    atexit.register(lambda: print("joined still:", torch.distributed.is_initialized()))
    processes = join("cpu")
    found = {name: steps(processes, **case) for name, case in CASES.items()}
    torch.save(found, f"{out}-{processes.rank}.pt")


def run_training(folder, config_file, die_at, images=10, how="SIGKILL", resume=""):
    """Train on ``shapes``; rank 1 sends itself a signal before step ``die_at``, once."""
    from detrlab.data import DataSet
    from detrlab.data.shapes import shapes
    from detrlab.errors import UserError
    from detrlab.training import distributed
    from detrlab.training.folder import RunConfig
    from detrlab.training.loop import Options, train

    rank, fatal = int(os.environ["RANK"]), int(die_at)
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if how == "SIGSTOP":  # the others wait for it until the time is over
        distributed.TIMEOUT = timedelta(seconds=5)

    def on_step(report):
        if rank == 1 and report.step + 1 == fatal and not again:
            os.kill(os.getpid(), getattr(signal, how))

    data = DataSet("shapes", *shapes(train=int(images), val=4))
    options = Options(device="cpu", say=print, on_step=on_step, save_every=1, resume=bool(resume))
    config = RunConfig.load(config_file)
    try:
        outcome = train(config, folder, data, options)
        print(json.dumps({"finished": outcome.finished, "metrics": outcome.metrics}))
        if not resume:
            train(config, folder, data, options)  # now there is a run: all must hear that
    except UserError as error:
        print(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    {"steps": run_steps, "train": run_training}[sys.argv[1]](*sys.argv[2:])
