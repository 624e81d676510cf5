"""What every detector of a comparison shares, measured in the trainings themselves."""

import hashlib

import pytest
import torch

from compare_cases import definition, in_process, small_recipe
from detrlab.compare import compare
from detrlab.compare.runner import fingerprints
from detrlab.data import open_data
from detrlab.presets import FIVE
from detrlab.training import loop


def digest(batch):
    parts = hashlib.sha256(repr((batch.image_ids, batch.original_sizes)).encode())
    for tensor in (*batch.images, *(part for target in batch.targets for part in target)):
        parts.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    return parts.hexdigest()


@pytest.fixture
def seen(monkeypatch):
    """Hashes of every training batch that reaches a network, as its training gets them."""
    hashes = []

    class Recording(loop.Loader):
        def epoch(self, *arguments, **options):
            for batch in super().epoch(*arguments, **options):
                if self.train:
                    hashes.append(digest(batch))
                yield batch

    monkeypatch.setattr(loop, "Loader", Recording)
    return hashes


def train(model, data, folder, seen, workers, seed=0):
    seen.clear()
    recipe = small_recipe(data)
    recipe = recipe.change(data=recipe.data.change(workers=workers))
    compare([model], recipe=recipe, output=folder, seeds=[seed], trainer=in_process)
    return list(seen)


def test_two_detectors_see_the_same_batches_whatever_the_worker_count(data, tmp_path, seen):
    detr = train("detr", data, tmp_path / "a", seen, workers=0)
    assert len(detr) == 4, "two epochs of two whole batches"
    assert len(set(detr)) == 4, "each epoch draws anew"
    torch.rand(7)  # global random state plays no part
    two_stage = train("deformable-detr-two-stage", data, tmp_path / "b", seen, workers=2)
    assert two_stage == detr
    assert train("detr", data, tmp_path / "c", seen, workers=0, seed=1) != detr


def test_all_start_from_the_same_backbone_and_read_in_the_same_order(data, tmp_path):
    found = open_data(data)
    prints = {0: set(), 1: set()}
    for run in definition(data, FIVE, seeds=(0, 1)).runs(tmp_path):
        prints[run.seed].add(tuple(fingerprints(run, found).values()))
    assert len(prints[0]) == len(prints[1]) == 1
    assert prints[0] != prints[1]
