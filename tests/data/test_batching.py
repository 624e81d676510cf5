"""Batches: the same for any number of workers and ranks, and after resuming."""

import gc
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from coco_folders import annotation, image_entry, write_coco
from PIL import Image

from detrlab.config import DataConfig, Phases
from detrlab.data import Batch, Loader, batches, num_batches
from detrlab.data.batching import eval_order, train_order
from detrlab.data.shapes import shapes
from detrlab.data.sources import open_data, open_whole
from detrlab.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from data_loading import waiting_share

CONFIG = DataConfig(image_size=64, max_size=96, augmentation="light", workers=0)
DENSE = CONFIG.change(resize="square", augmentation="dense", scales=2, repeat_threshold=0.9)


@pytest.fixture(scope="module")
def table():
    return shapes(train=22, val=1)[0]


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images.pixels, other.images.pixels)
        and torch.equal(one.images.padding, other.images.padding)
        and one.image_ids == other.image_ids
        and one.original_sizes == other.original_sizes
        and all(
            torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels)
            for a, b in zip(one.targets, other.targets, strict=True)
        )
    )


def epoch(table, **changes):
    config = changes.pop("config", CONFIG)
    arguments = {"batch": 4, "seed": 3, "epoch": 1, "train": True, "workers": 0, **changes}
    return list(batches(table, config, **arguments))


def assert_same(ones, others):
    assert all(same(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize(
    ("config", "workers"),
    [
        (CONFIG.change(augmentation="detr"), 1),
        (CONFIG, 3),
        (CONFIG.change(augmentation="none"), 2),
        (DENSE.change(repeat_threshold=0.0), 2),
    ],
    ids=["detr", "light", "none", "dense"],
)
def test_any_number_of_workers_gives_the_same_batches(table, config, workers):
    """The workers of one loader serve every epoch, also after one that was not read to its end."""
    options = {"batch": 4, "seed": 3, "train": True}
    alone = Loader(table, config, workers=0, **options)
    together = Loader(table, config, workers=workers, **options)
    next(together.epoch(0))
    for number, start in ((1, 0), (2, 3)):
        expected = list(alone.epoch(number, start))
        assert len(expected) == 5 - start
        children = multiprocessing.active_children()
        assert len(children) == workers
        assert_same(expected, together.epoch(number, start))
        assert multiprocessing.active_children() == children


def test_global_random_state_is_neither_used_nor_changed(table):
    first = epoch(table)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    state = torch.get_rng_state()
    assert_same(first, epoch(table, workers=2))
    assert torch.equal(state, torch.get_rng_state())


def test_seed_and_epoch_change_order_and_draws(table):
    ids = [batch.image_ids for batch in epoch(table)]
    assert ids == [batch.image_ids for batch in epoch(table)]
    assert ids != [batch.image_ids for batch in epoch(table, epoch=2)]
    assert ids != [batch.image_ids for batch in epoch(table, seed=4)]


def test_draws_of_an_image_do_not_depend_on_its_batch(table):
    """Another batch size, another order: the image is augmented the same."""

    def pixels(parts):
        return {
            image_id: batch.images.pixels[i][:, ~batch.images.padding[i]]
            for batch in parts
            for i, image_id in enumerate(batch.image_ids)
        }

    small, large = pixels(epoch(table, batch=2)), pixels(epoch(table, batch=5))
    common = small.keys() & large.keys()
    assert len(common) >= 18
    assert all(torch.equal(small[key], large[key]) for key in common)


def test_ranks_share_each_global_batch(table):
    whole = epoch(table)
    ranks = [epoch(table, rank=rank, world=2) for rank in range(2)]
    for position, batch in enumerate(whole):
        shared = [ranks[rank][position].image_ids for rank in range(2)]
        assert sorted(sum(shared, ())) == sorted(batch.image_ids)
        assert [len(ids) for ids in shared] == [2, 2]
    with pytest.raises(UserError, match="3 processes"):
        epoch(table, rank=0, world=3)


def test_ranks_see_the_images_of_one_process_in_dense_batches_of_several_sizes(table):
    whole = epoch(table, config=DENSE)
    assert len(whole) > 5  # some images come again
    sides = [batch.images.pixels.shape[-1] for batch in whole]
    assert len(set(sides)) > 1
    for rank in range(2):
        for batch, ours in zip(whole, epoch(table, config=DENSE, rank=rank, world=2), strict=True):
            assert ours.image_ids == batch.image_ids[rank::2]
            assert torch.equal(ours.images.pixels, batch.images.pixels[rank::2])
    assert_same(whole[3:], epoch(table, config=DENSE, start=3))


def test_sides_of_batches_are_deims():
    assert CONFIG.sides == (64,)
    assert DENSE.sides == (32, 64, 64, 64)  # 48 and 80 are no multiples of 32
    config = DENSE.change(image_size=640, scales=3)
    large, small = range(800, 640, -32), range(480, 640, 32)
    assert config.sides == (*small, 640, 640, 640, *large)
    assert config.longest_side == 800
    assert DENSE.change(image_size=32).sides == (32, 32, 32)


def test_plain_epochs_have_one_size_and_only_flip(table):
    phases = Phases(start=1, mosaic_end=2, end=3)
    loader = Loader(table, DENSE, batch=4, train=True, phases=phases, workers=0)
    # The pixels of each image, and of its mirror image.
    known = {}
    for part in batches(table, DENSE, batch=1, train=False):
        pixels = part.images.pixels[0]
        known[part.image_ids[0]] = (pixels, pixels.flip(-1))
    sizes = {}
    for number in range(4):
        parts = list(loader.epoch(number))
        sizes[number] = {part.images.pixels.shape[-1] for part in parts}
        plain = [
            any(torch.allclose(part.images.pixels[i], each, atol=0.02) for each in known[image_id])
            for part in parts
            if part.images.pixels.shape[-1] == 64
            for i, image_id in enumerate(part.image_ids)
        ]
        assert all(plain) if number in (0, 3) else not all(plain)
    assert sizes[0] == sizes[3] == {64}
    assert len(sizes[1]) > 1
    assert [phases.of(epoch) for epoch in range(4)] == ["plain", "whole", "single", "plain"]


def test_square_evaluation_is_one_shape(table):
    parts = list(batches(table, DENSE, batch=4, train=False, workers=0))
    assert {tuple(part.images.pixels.shape[-2:]) for part in parts} == {(64, 64)}
    assert len(parts) == num_batches(table, DENSE, batch=4, train=False) == 6


def test_last_partial_batch_is_dropped_unless_alone(table):
    for batch, expected in ((4, 5), (22, 1), (21, 1), (30, 1), (1, 22)):
        assert len(train_order(table, batch=batch, seed=0, epoch=0)) == expected
        assert num_batches(table, CONFIG, batch=batch, train=True) == expected
    assert len(train_order(table, batch=30, seed=0, epoch=0)[0]) == 22


def test_evaluation_never_pads_and_sees_every_image_once(table):
    for workers in (0, 2):
        parts = list(batches(table, CONFIG, batch=4, train=False, workers=workers))
        assert not any(part.images.padding.any() for part in parts)
        assert sorted(sum((part.image_ids for part in parts), ())) == list(range(1, 23))
        assert len(parts) == num_batches(table, CONFIG, batch=4, train=False)
    areas = [part.images.pixels.shape[-1] * part.images.pixels.shape[-2] for part in parts]
    assert areas == sorted(areas, reverse=True)


def test_evaluation_is_shared_by_ranks(table):
    parts = [
        list(batches(table, CONFIG, batch=4, train=False, rank=rank, world=3)) for rank in range(3)
    ]
    ids = [image_id for rank in parts for part in rank for image_id in part.image_ids]
    assert sorted(ids) == list(range(1, 23))
    assert sum(len(rank) for rank in parts) == len(eval_order(table, CONFIG, batch=4))


def test_padding_is_zero_and_targets_ignore_it(table):
    part = next(iter(epoch(table, batch=8)))
    pixels, padding = part.images
    assert padding.any()
    assert (pixels.movedim(1, -1)[padding] == 0).all()
    assert not padding[:, 0, 0].any()
    for i, target in enumerate(part.targets):
        height, width = (~padding[i]).sum(0).max(), (~padding[i]).sum(1).max()
        assert ((~padding[i]).sum() == height * width).item()
        assert (target.boxes <= 1.0001).all()


def test_images_without_objects_are_ordinary(table):
    found = [
        (part, i)
        for part in epoch(table, batch=1)
        for i in range(1)
        if not len(part.targets[i].labels)
    ]
    assert found
    part, i = found[0]
    assert part.targets[i].boxes.shape == (0, 4)


@pytest.fixture
def broken(tmp_path):
    images = [image_entry(i, f"photo{i}.png", 40, 60) for i in range(1, 9)]
    boxes = [annotation(i, i, 1, [5, 5, 20, 20]) for i in range(1, 9)]
    for split in ("train", "val"):
        write_coco(
            tmp_path, images=images, annotations=boxes, categories={1: "x"},
            name=f"{split}.json", image_folder=split,
        )  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named(broken, workers):
    table = open_data(broken).train
    data = (broken / "train" / "photo5.png").read_bytes()
    (broken / "train" / "photo5.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"photo5\.png cannot be read.*--fix"):
        list(batches(table, CONFIG, batch=2, train=True, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_vanished_image_is_named(broken, workers):
    table = open_data(broken).train
    (broken / "train" / "photo3.png").unlink()
    with pytest.raises(UserError, match=r"photo3\.png cannot be opened"):
        list(batches(table, CONFIG, batch=2, train=True, workers=workers))


class _Deadly:
    """Pictures whose second image kills the process that reads it."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def name(self, i):
        return f"deadly{i}.png"

    def read(self, i, declared):
        if i == 1:
            os._exit(9)
        return self.inner.read(i, declared)

    def select(self, _):
        return self


def test_dead_worker_is_one_clear_message(table):
    deadly = replace(table, pictures=_Deadly(table.pictures))
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(UserError, match=r"worker died.*deadly1\.png.*fewer --workers"):
        list(batches(deadly, CONFIG, batch=2, train=True, workers=2))
    # A worker's death may not raise at any other place.
    assert signal.getsignal(signal.SIGCHLD) == before


def test_loader_leaves_no_process_when_abandoned(table):
    stream = batches(table, CONFIG, batch=2, seed=0, epoch=0, train=True, workers=2)
    next(stream)
    assert multiprocessing.active_children()
    del stream
    gc.collect()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_other_start_methods_give_the_same_batches(table, monkeypatch):
    """Where there is no fork, each worker gets a copy of the table."""
    monkeypatch.setattr("detrlab.data.batching.START_METHOD", "spawn")
    assert_same(epoch(table)[:2], epoch(table, workers=1)[:2])


def test_batches_larger_than_shared_memory_arrive_too(table, monkeypatch):
    """Containers often have 64 MB of it; more would kill a worker."""
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=1 << 20))
    assert_same(epoch(table), epoch(table, workers=2))
    assert not epoch(table, workers=2)[0].images.pixels.is_shared()
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bavail=9, f_frsize=1 << 20))
    assert epoch(table, workers=2)[0].images.pixels.is_shared()  # those that fit are not copied


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(table):
    """A killed training must not leave readers behind."""
    ready, ours = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")

    def parent():
        stream = batches(table, CONFIG, batch=2, seed=0, epoch=0, train=True, workers=2)
        next(stream)
        ours.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)

    process = context.Process(target=parent)
    process.start()
    children = ready.recv()
    assert len(children) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in children)


def _runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_impossible_arguments(table):
    with pytest.raises(UserError, match="batch size 0"):
        epoch(table, batch=0)
    with pytest.raises(UserError, match="rank 2"):
        epoch(table, rank=2, world=2)


class _Slow(_Deadly):
    """Pictures that take 10 ms to read, without work for a processor."""

    def read(self, i, declared):
        time.sleep(0.01)
        return self.inner.read(i, declared)


@pytest.mark.parametrize(("workers", "least", "most"), [(0, 0.2, 1.0), (1, 0.0, 0.15)])
def test_a_worker_reads_ahead_while_the_step_runs(table, workers, least, most):
    """A batch takes 40 ms to read, a step that sleeps 100 ms: it hardly waits for a worker."""
    slow = replace(table, pictures=_Slow(table.pictures))
    loader = Loader(slow, CONFIG.change(augmentation="none"), batch=4, train=True, workers=workers)
    assert least <= waiting_share(loader, 0.1, epochs=3) < most


@pytest.mark.parametrize("turned", [False, True])
def test_scaled_decoding_is_for_training_and_scales_boxes(tmp_path, turned):
    """Off by default; never below the size that training wants, and not in the evaluation."""
    write_coco(
        tmp_path, images=[image_entry(1, "a.jpg", 300, 500), image_entry(2, "b.png", 300, 500)],
        annotations=[annotation(k, k, 1, [100, 60, 200, 120]) for k in (1, 2)],
        categories={1: "a"},
    )  # fmt: skip
    if turned:
        path = tmp_path / "images" / "a.jpg"
        image = Image.open(path).transpose(Image.Transpose.ROTATE_90)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    table = open_whole(tmp_path).train
    for least, sides in ((0, (300, 500)), (301, (300, 500)), (150, (150, 250)), (40, (75, 125))):
        scaled, png = table.read(0, least), table.read(1, least)
        assert tuple(scaled.image.shape[1:]) == sides
        factor = sides[0] / 300
        assert scaled.boxes.tolist() == [[100 * factor, 60 * factor, 300 * factor, 180 * factor]]
        assert tuple(png.image.shape[1:]) == scaled.original_size == (300, 500)
        assert png.boxes.tolist() == [[100, 60, 300, 180]]
    on = CONFIG.change(augmentation="none", image_size=64, max_size=100, scaled_decoding=True)
    off = on.change(scaled_decoding=False)
    for train in (True, False):
        one, other = (list(batches(table, config, batch=2, train=train)) for config in (on, off))
        pairs = list(zip(one, other, strict=True))
        equal = all(torch.equal(a.images.pixels, b.images.pixels) for a, b in pairs)
        assert equal == (not train)
        for a, b in pairs:
            assert (a.images.pixels - b.images.pixels).abs().max() < 0.5
            for mine, theirs in zip(a.targets, b.targets, strict=True):
                torch.testing.assert_close(mine.boxes, theirs.boxes, atol=1e-6, rtol=0)
    wrong = replace(table, sizes=table.sizes + 7)
    assert wrong.read(0, 40).image.shape[1:] == (300, 500)
