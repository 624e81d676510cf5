"""Runs small enough to be repeated in a second."""

import pytest

from detrlab.config import DataConfig, TrainConfig
from detrlab.data import DataSet
from detrlab.data.shapes import shapes
from detrlab.presets import model_config
from detrlab.training.folder import RunConfig
from detrlab.training.loop import train

TINY = {
    "backbone": "test_resnet",
    "backbone_norms": "trained",
    "backbone_trains": "all",
    "width": 32,
    "num_heads": 2,
    "ffn_width": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 12,
}


@pytest.fixture(scope="session")
def tiny_data():
    train, val = shapes(train=10, val=4)
    return DataSet("shapes", train, val)


@pytest.fixture(scope="session")
def tiny_config(tiny_data):
    def make(preset="deformable-detr-two-stage", *, model=None, data=None, **train):
        changes = {**TINY, **({"levels": 3} if "deformable" in preset else {}), **(model or {})}
        return RunConfig(
            model=model_config(preset, len(tiny_data.train.classes), **changes),
            train=TrainConfig(
                **{
                    "epochs": 2,
                    "batch": 4,
                    "learning_rate": 1e-3,
                    "drop_epoch": 1,
                    "weights": "none",
                    **train,
                }
            ),
            data=DataConfig(
                **{
                    "image_size": 64,
                    "max_size": 64,
                    "augmentation": "light",
                    "workers": 0,
                    **(data or {}),
                }
            ),
        )

    return make


@pytest.fixture(scope="session")
def whole(tmp_path_factory, tiny_config, tiny_data):
    """The folder of an uninterrupted run, to compare others with."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_config(), folder, tiny_data)
    return folder
