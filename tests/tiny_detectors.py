"""Small detectors on a small ResNet, as the parity tests need them."""

from detrlab.config import ModelConfig
from detrlab.presets import model_config

BLOCKS = (1, 1, 1, 2)  # a dilated stage's first block is not dilated: it takes two to see it
PLANES = {"tiny": (8, 16, 24, 32), "std": (64, 128, 256, 512)}


def tiny_resnet(width: str = "tiny") -> str:
    """The timm name of a ResNet in torchvision's layout, registered on first use."""
    import timm
    from timm.models import resnet

    name = f"detrlab_test_resnet_{width}"
    if not timm.is_model(name):

        def entry(pretrained=False, **kwargs):
            assert not pretrained
            kwargs.pop("pretrained_cfg", None)
            kwargs.pop("pretrained_cfg_overlay", None)
            return timm.models.build_model_with_cfg(
                resnet.ResNet,
                name,
                False,
                block=resnet.Bottleneck,
                layers=BLOCKS,
                channels=PLANES[width],
                pretrained_cfg={"url": "", "num_classes": 1000, "input_size": (3, 224, 224)},
                feature_cfg={"out_indices": (0, 1, 2, 3, 4)},
                **kwargs,
            )

        entry.__name__ = name
        entry.__module__ = resnet.__name__
        timm.models.register_model(entry)
    return name


TINY = {
    "width": 64,
    "num_heads": 4,
    "ffn_width": 96,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_queries": 24,
    "dropout": 0.0,
}


def tiny_config(preset: str, num_classes: int = 5, planes: str = "tiny", **changes) -> ModelConfig:
    """A preset shrunk to the sizes that the parity tests use."""
    return model_config(preset, num_classes, **{"backbone": tiny_resnet(planes), **TINY, **changes})
