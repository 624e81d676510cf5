"""Small detectors on a small ResNet, as the parity tests need them."""

from detrlab.config import ModelConfig
from detrlab.presets import PRESETS, model_config

BLOCKS = (1, 1, 1, 2)  # a dilated stage's first block is not dilated: it takes two to see it
PLANES = {"tiny": (8, 16, 24, 32), "std": (64, 128, 256, 512)}


def tiny_resnet(width: str = "tiny") -> str:
    """The timm name of a ResNet in torchvision's layout, registered on first use."""
    return _registered(f"detrlab_test_resnet_{width}", layers=BLOCKS, channels=PLANES[width])


def tiny_resnet_d(*, basic: bool, layers: tuple[int, ...] = (1, 1, 1, 1)) -> str:
    """The timm name of a ResNet-D of full width, of basic blocks or bottlenecks."""
    name = (
        f"detrlab_test_resnet_d_{'basic' if basic else 'bottleneck'}_{'_'.join(map(str, layers))}"
    )
    stem = {"stem_width": 32, "stem_type": "deep", "avg_down": True}
    return _registered(name, basic=basic, layers=layers, **stem)


def _registered(name: str, *, basic: bool = False, **arguments) -> str:
    import timm
    from timm.models import resnet

    if not timm.is_model(name):

        def entry(pretrained=False, **kwargs):
            assert not pretrained
            kwargs.pop("pretrained_cfg", None)
            kwargs.pop("pretrained_cfg_overlay", None)
            return timm.models.build_model_with_cfg(
                resnet.ResNet,
                name,
                False,
                block=resnet.BasicBlock if basic else resnet.Bottleneck,
                pretrained_cfg={"url": "", "num_classes": 1000, "input_size": (3, 224, 224)},
                feature_cfg={"out_indices": (0, 1, 2, 3, 4)},
                **arguments,
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
ENCODER = {"encoder_width": 64, "encoder_ffn_width": 96}
"""Where the encoder has sizes of its own."""


def tiny_config(preset: str, num_classes: int = 5, planes: str = "tiny", **changes) -> ModelConfig:
    """A preset shrunk to the sizes that the parity tests use."""
    fields = PRESETS[preset].model_fields
    sizes = {name: value for name, value in {**TINY, **ENCODER}.items() if name in fields}
    values = {"backbone": tiny_resnet(planes), **sizes, **changes}
    return model_config(preset, num_classes, **values)
