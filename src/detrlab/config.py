"""Configuration: small frozen records, validated when they are made, round-trip to YAML.

The model's classes never see these: a preset turns them into plain numbers and parts. No torch
is imported here, so that the command line reads a recipe quickly.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from detrlab.errors import UserError, did_you_mean, excerpt
from detrlab.files import read_yaml

if TYPE_CHECKING:
    from torch import nn

    from detrlab.losses.criterion import Criterion
    from detrlab.models.network import Network
    from detrlab.scoring import Scoring


class Record(BaseModel):
    """A frozen, validated set of settings.

    Raises:
        UserError: a key is unknown (the closest match is named) or a value is out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "") -> Self:
        """Build from plain values; ``where`` names their origin in the error."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise UserError(_explain(error, cls, where)) from None

    def change(self, **changes: Any) -> Self:
        """A copy with ``changes``, validated again."""
        return self.parse({**self.model_dump(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for YAML and JSON."""
        return self.model_dump(mode="json")

    def save(self, path: str | Path) -> None:
        """Write as YAML."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read YAML written by ``save`` or by hand."""
        return cls.parse(read_yaml(path), where=str(path))


def first_mistake(error: ValidationError) -> str:
    """Where the first value is wrong, and why."""
    mistake = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}"


def _explain(error: ValidationError, record: type[Record], where: str) -> str:
    """One line per mistake, with the value and, for an unknown key, the closest known one."""
    lines = []
    for mistake in error.errors():
        name = ".".join(str(part) for part in mistake["loc"])
        if mistake["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name!r}{did_you_mean(name, record.model_fields)}")
        elif mistake["type"] == "value_error":
            lines.append(str(mistake["ctx"]["error"]))
        else:
            lines.append(f"{name}: {mistake['msg']} (got {excerpt(mistake['input'])})")
    return f"{where}: " * bool(where) + "; ".join(lines)


class ModelConfig(Record):
    """The settings of one detector. A preset is a subclass that also builds the detector.

    See ``detrlab.presets``; ``docs/adding-a-variant.md`` shows a preset of one's own.
    """

    preset: str
    """Name of the preset."""
    num_classes: int = Field(ge=1)
    num_queries: int = Field(100, ge=1, le=100_000)

    backbone: str = "resnet50"
    """Any timm model with feature maps."""
    dilation: bool = False
    """Dilate the last stage instead of striding it (DC5)."""
    backbone_norms: Literal["frozen", "trained"] = "frozen"
    """Frozen batch norm needs pretrained statistics; without them, train the norms."""
    backbone_trains: Literal["late", "body", "all", "none"] = "late"
    """``late``: all but the stem and the first stage, as the originals; ``body``: all but the
    stem."""

    @model_validator(mode="after")
    def _norms_can_train(self) -> Self:
        if self.backbone_norms == "trained" and self.backbone_trains == "none":
            raise ValueError("backbone_norms 'trained' contradicts backbone_trains 'none'")
        return self

    @property
    def scoring(self) -> Scoring:
        """How class logits are read."""
        raise NotImplementedError

    def preprocessing(self) -> DataConfig:
        """Image size and normalisation of the published weights."""
        return DataConfig()

    def build_backbone(self, *, pretrained: bool) -> nn.Module:
        """The backbone, with ImageNet weights if asked for."""
        raise NotImplementedError

    def build(self, backbone: nn.Module) -> Network:
        """The network around a backbone, with initial values drawn from torch's generator."""
        raise NotImplementedError

    def criterion(self, train: TrainConfig) -> Criterion:
        """The losses and the matching that the detector is trained with."""
        raise NotImplementedError


class DataConfig(Record):
    """The data set, the image size and the augmentation."""

    data: str = "shapes"
    """A folder, a file or the name of a built-in set."""
    image_size: int = Field(800, ge=32)
    """Short side in pixels at evaluation, and the largest short side in training."""
    max_size: int = Field(1333, ge=32)
    """Bound of the long side in pixels; ``square`` has none."""
    resize: Literal["short_side", "square"] = "short_side"
    """``square`` stretches every image to ``image_size`` by ``image_size``."""
    scales: int = Field(0, ge=0)
    """``square``: each training batch draws its side from the multiples of 32 between about 0.75
    and 1.25 of ``image_size``, where ``image_size`` counts so many times; 0 has one side."""
    augmentation: Literal["detr", "light", "strong", "mild", "dense", "none"] = "detr"
    """``detr`` is the originals'; ``light``, ``strong`` and ``mild`` are for some hundred images;
    ``dense`` is DEIM's."""
    mosaic: float = Field(0.5, ge=0, le=1)
    """``dense``: share of the images that become a mosaic of four."""
    mixup: float = Field(0.5, ge=0, le=1)
    """``dense``: share of the images that are averaged with another one."""
    copy_blend: float = Field(0.5, ge=0, le=1)
    """``dense``: share of the other images that get objects of another one."""
    min_size: float = Field(1.0, ge=0)
    """``mild``, ``dense``: boxes with a side below so many pixels are dropped in training."""
    repeat_threshold: float = Field(0.0, ge=0, le=1)
    """Images of classes in a smaller share of the images than this come several times in an
    epoch; 0 has each image once. Source: arXiv 1908.03195, section 4.2."""
    passes: int = Field(1, ge=1)
    """Passes over the images in an epoch: evaluating after each takes long with few images."""
    scaled_decoding: bool = False
    """In training, JPEG files are decoded at a half, a quarter or an eighth of their size, where
    no side gets below the largest side of a training image: quicker, and not exactly the pixels
    of the evaluation."""
    workers: int = Field(2, ge=0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _sides_fit(self) -> Self:
        if self.resize == "square":
            return self
        if self.max_size < self.image_size:
            raise ValueError(
                f"max_size {self.max_size} is below image_size {self.image_size}: "
                "the bound of the long side cannot be below the short side"
            )
        if self.scales:
            raise ValueError(
                f"scales {self.scales} needs square images: set data.resize=square, or scales=0"
            )
        if self.augmentation == "dense":
            raise ValueError(
                "augmentation 'dense' blends images of one size: set data.resize=square, or take "
                "'mild' or 'strong'"
            )
        return self

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides that a square training batch draws from; ``image_size`` alone by default.

        Source: DEIM, engine/data/dataloader.py, ``generate_scales``.
        """
        if not self.scales:
            return (self.image_size,)
        low, high = int(self.image_size * 0.75) // 32 * 32, int(self.image_size * 1.25) // 32 * 32
        count = (self.image_size - low) // 32
        smaller = [low + 32 * i for i in range(count) if low + 32 * i >= 32]
        larger = [high - 32 * i for i in range(count)]
        return (*smaller, *(self.image_size,) * self.scales, *larger)

    @property
    def longest_side(self) -> int:
        """Bound of a training image's long side in pixels."""
        return max(self.sides) if self.resize == "square" else self.max_size

    def resized(self, image_size: int) -> Self:
        """The same at another size; the bound of the long side keeps its proportion.

        Raises:
            UserError: the size is too small.
        """
        proportion = self.max_size / self.image_size
        return self.change(image_size=image_size, max_size=max(32, round(image_size * proportion)))


def unit_square(side: int) -> DataConfig:
    """Images as the real-time detectors see them: stretched to a square, values from 0 to 1."""
    return DataConfig(image_size=side, resize="square", mean=(0, 0, 0), std=(1, 1, 1))


def _quick(pattern: str) -> str:
    """A regular expression that cannot take for ever; a recipe may come from anybody.

    A repetition of what repeats or branches takes exponential time, many in a row a power.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]", "c", pattern)
    inner = re.compile(r"\([^()]*\)")
    nested = False
    while found := inner.search(plain):
        moves = re.search(r"[*+{|]", found[0]) is not None
        nested |= moves and plain[found.end() : found.end() + 1] in ("*", "+", "{")
        plain = plain[: found.start()] + ("c*" if moves else "c") + plain[found.end() :]
    if nested or len(re.findall(r"[*+{]", plain)) > MAX_REPETITIONS:
        raise ValueError(
            f"{pattern!r} may take for ever: use at most {MAX_REPETITIONS} repetitions, none of "
            "them inside of another"
        )
    return pattern


MAX_REPETITIONS = 3
Pattern = Annotated[str, AfterValidator(_quick)]
"""A regular expression that is searched in the names of parameters."""


class LearningRateGroup(Record):
    """A learning rate for parameters whose name matches ``pattern`` (a regular expression)."""

    name: str
    pattern: Pattern
    factor: float = Field(ge=0)
    weight_decay: float | None = Field(None, ge=0)
    """None takes that of all parameters."""


BACKBONE_GROUP = LearningRateGroup(name="backbone", pattern=r"^backbone\.", factor=0.1)
SAMPLING_GROUP = LearningRateGroup(
    name="sampling", pattern=r"sampling_offsets|reference_points", factor=0.1
)


_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _written_out(precision: Any) -> Any:
    """The full name of an abbreviated precision."""
    return _SHORT.get(precision, precision) if isinstance(precision, str) else precision


class Phases(NamedTuple):
    """How far each epoch, counted from 0, augments its images.

    Attributes:
        start: the epochs before it are plain.
        mosaic_end: the epochs from here on have neither mosaic nor mixup.
        end: the epochs from here on are plain: flip and resize only, in one size.
    """

    start: int
    mosaic_end: int
    end: int

    def of(self, epoch: int) -> Phase:
        """The phase of an epoch."""
        if not self.start <= epoch < self.end:
            return "plain"
        return "whole" if epoch < self.mosaic_end else "single"


Phase = Literal["plain", "single", "whole"]
"""``single`` is the whole augmentation but what mixes whole images: mosaic and mixup."""


class TrainConfig(Record):
    """How a detector is trained."""

    epochs: int = Field(50, ge=1)
    batch: int = Field(16, ge=1)
    """Batch size of an optimiser step, over all processes and micro-batches."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Images of one forward pass; None: the whole batch; ``auto``: as many as memory holds."""
    learning_rate: float = Field(1e-4, gt=0)
    groups: tuple[LearningRateGroup, ...] = (BACKBONE_GROUP, SAMPLING_GROUP)
    """The first group that matches a parameter sets its rate; the others use the full rate."""
    weight_decay: float = Field(1e-4, ge=0)
    decay_norms: bool = True
    """Whether norms and biases decay too: all parameters with one dimension."""
    clip: float = Field(0.1, ge=0)
    """Bound of the total gradient norm; 0 switches clipping off."""
    schedule: Literal["step", "cosine", "flat_cosine"] = "step"
    drop_epoch: int | None = Field(None, ge=1)
    """``step``: the rate is divided by 10 after each so many epochs; None never drops."""
    flat_part: float = Field(0.5, ge=0, le=1)
    """``flat_cosine``: part of all epochs before the rate falls."""
    final_factor: float = Field(0.5, ge=0, le=1)
    """``flat_cosine``: of the rate, reached before the last ``plain_epochs``."""
    warmup_steps: int = Field(0, ge=0)
    warmup: Literal["linear", "quadratic"] = "linear"
    plain_epochs: int = Field(0, ge=0)
    """The last so many epochs only flip and resize images, to one size."""
    plain_first: int = Field(0, ge=0)
    """So do the first so many epochs."""
    mosaic_part: float = Field(0.5, ge=0, le=1)
    """Augmentation ``dense``: part of all epochs after which mosaic and mixup stop."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then evaluated and saved."""
    ema_warmup: int | None = Field(None, ge=0)
    """The decay rises as 1 - exp(-updates / so many), and running statistics are averaged too, as
    in D-FINE and DEIM; None rises as (1 + updates) / (10 + updates) and copies them."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many epochs without a better AP; None trains all epochs."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    auxiliary_losses: bool = True
    class_weight: float | None = Field(None, gt=0)
    """Weight of the class loss; None takes the preset's own (softmax 1, sigmoid 2)."""
    box_weight: float = Field(5.0, ge=0)
    giou_weight: float = Field(2.0, ge=0)
    class_cost: float | None = Field(None, ge=0)
    """Weight of the class term in the matching; None takes the loss's, as the originals."""
    box_cost: float | None = Field(None, ge=0)
    giou_cost: float | None = Field(None, ge=0)
    precision: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"], BeforeValidator(_written_out)
    ] = "float32"
    seed: int = Field(42, ge=0)
    weights: str = "imagenet"
    """Initial weights: ``imagenet`` (backbone), ``coco-backbone`` (the packaged detector's, of
    hgnetv2_femto), ``none``, ``coco``, ``figures`` (the demo's small weights), or a file."""
    class_rows: Literal["auto", "keep", "seed", "new"] = "auto"
    """Rows taken from the checkpoint's class heads: all if the classes are the same; all, by
    index; those of classes with the same name; none."""
    reinitialise: tuple[Pattern, ...] = ()
    """Patterns (regular expressions, searched) of tensors to re-initialise."""
    freeze: tuple[Pattern, ...] = ()
    """Patterns (regular expressions, searched) of parameters that do not train."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.plain_first + self.plain_epochs >= self.epochs:
            raise ValueError(
                f"plain_epochs {self.plain_epochs} and plain_first {self.plain_first} leave none "
                f"of the {self.epochs} epochs to the augmentation: lower them, or train longer"
            )
        if self.ema_warmup is not None and self.ema_decay is None:
            raise ValueError(
                f"ema_warmup {self.ema_warmup} needs an average: set train.ema_decay=0.9999"
            )
        return self

    @property
    def phases(self) -> Phases:
        """When the augmentation begins and stops."""
        mosaic_end = round(self.mosaic_part * self.epochs)
        return Phases(self.plain_first, mosaic_end, self.epochs - self.plain_epochs)

    def over(self, epochs: int) -> Self:
        """The same schedule over another number of epochs: everything at the same fraction."""
        part = epochs / self.epochs
        changes: dict[str, Any] = {"epochs": epochs}
        if self.drop_epoch is not None:
            changes["drop_epoch"] = max(1, round(self.drop_epoch * part))
        changes["plain_epochs"] = min(round(self.plain_epochs * part), epochs - 1)
        changes["plain_first"] = min(
            round(self.plain_first * part), epochs - 1 - changes["plain_epochs"]
        )
        return self.change(**changes)


class Recipe(Record):
    """Everything a run needs besides the detector's name."""

    name: str
    description: str = ""
    model: dict[str, Any] = Field(default_factory=dict)
    """Changes to the preset, the same for every detector."""
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    train_each: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Changes to ``train`` for one detector only, by preset: what each original used."""
    assumed: tuple[str, ...] = ()
    """Settings that the recipe's source does not state, such as ``data.image_size``."""

    @model_validator(mode="after")
    def _names_settings(self) -> Self:
        known = [
            f"{part}.{field}"
            for part, record in (("train", TrainConfig), ("data", DataConfig))
            for field in record.model_fields
        ]
        for setting in self.assumed:
            if setting not in known and not setting.startswith("model."):
                raise ValueError(f"unknown setting {setting!r}{did_you_mean(setting, known)}")
        for preset in self.train_each:
            self.train_for(preset)
        return self

    def train_for(self, preset: str) -> TrainConfig:
        """How the detector of that name is trained.

        Raises:
            UserError: its changes are impossible.
        """
        return self.train.change(**self.train_each.get(preset, {}))

    def over(self, epochs: int) -> Self:
        """The recipe with every detector's schedule over that many epochs."""
        moved = {"epochs", "drop_epoch", "plain_epochs", "plain_first"}
        each = {
            preset: {
                **row,
                **self.train_for(preset).over(epochs).model_dump(include=moved),
            }
            for preset, row in self.train_each.items()
        }
        return self.change(train=self.train.over(epochs).model_dump(), train_each=each)
