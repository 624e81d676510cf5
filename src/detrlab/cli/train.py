"""``detrlab train``: train one detector."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from detrlab.cli.settings import RecipeOptions

if TYPE_CHECKING:
    from detrlab.config import Recipe
    from detrlab.training.folder import RunConfig


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions):
    """Train one detector on your data."""

    recipe: str = ""
    """The recipe, a full set of settings: photos, laptop, tiny, cppe5, cppe5-improved, paper, or a
    YAML file. By default photos for the detector that comes with detrlab, otherwise laptop."""
    model: str | None = None
    """Name of the detector: see detrlab models. By default the one that comes with detrlab,
    trained on COCO; with another recipe deformable-detr-two-stage."""
    output: str | None = None
    """Folder of the run; runs/train/MODEL by default. An existing run is never overwritten."""
    resume: bool = False
    """Resume the run in the folder; the result is the same, bit for bit, as without a stop."""
    seed: int | None = None
    """Random seed of initial weights, image order and augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""
    save_every: Annotated[int | None, tyro.conf.arg(metavar="STEPS")] = None
    """Also save the state of the run every STEPS steps."""
    patience: int | None = None
    """Stop after this number of epochs without a better AP."""
    preflight: bool = True
    """Run pre-flight checks before training."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers, if installed: tensorboard, wandb, mlflow, trackio ..."""

    def what(self) -> tuple[str, str]:
        """The model and the recipe that are meant, where one or both are not given."""
        from detrlab.checkpoints.weights import IN_THE_BOX

        if not self.recipe:
            model = self.model or IN_THE_BOX
            return model, "photos" if model == IN_THE_BOX else "laptop"
        usual = IN_THE_BOX if self.recipe == "photos" else "deformable-detr-two-stage"
        return self.model or usual, self.recipe

    def settled(self) -> Recipe:
        """The recipe with every flag applied."""
        if self.recipe:
            return super().settled()
        return replace(self, recipe=self.what()[1]).settled()


def run(options: Options) -> int:
    """Train; returns the exit code."""
    from detrlab.cli.common import device_name, print_metrics, say
    from detrlab.cli.progress import following, is_main_process
    from detrlab.cli.settings import change_settings
    from detrlab.data import num_batches, open_data
    from detrlab.training import loop

    model, _ = options.what()
    recipe = options.settled()
    given = {"train.seed": options.seed, "train.patience": options.patience}
    recipe = change_settings(recipe, {name: v for name, v in given.items() if v is not None})
    data = open_data(recipe.data.data)
    config = loop.plan(model, recipe, data)
    folder = options.output or f"runs/train/{model}"
    if options.resume and options.epochs is not None:
        config = _keep_drop_epoch(config, folder, options.set)
    steps = num_batches(data.train, config.data, batch=config.train.batch, train=True)
    with following(steps * config.train.epochs) as (tell, on_step):
        for note in data.notes if is_main_process() else ():
            tell(note)
        outcome = loop.train(
            config,
            folder,
            data,
            loop.Options(
                resume=options.resume,
                device=device_name(options.device),
                save_every=options.save_every,
                preflight=options.preflight,
                trackers=options.trackers,
                say=tell,
                on_step=on_step,
            ),
        )
    if not is_main_process():
        return 0 if outcome.finished else 130
    if not outcome.finished:
        again = [word for word in sys.argv[1:] if word != "--resume"]
        say(f"stopped; resume with: {shlex.join(['detrlab', *again, '--resume'])}")
        return 130
    print_metrics(outcome.metrics, title=f"{model} on the validation split, last weights")
    say(f"weights, curves and metrics: {outcome.folder.path}")
    return 0


def _keep_drop_epoch(config: RunConfig, folder: str, settings: Sequence[str]) -> RunConfig:
    """Resuming with more epochs must not move the learning-rate drop of the trained ones."""
    from detrlab.cli.settings import parse_settings
    from detrlab.training.folder import RunConfig, RunFolder

    saved = RunFolder(Path(folder)).config
    if "train.drop_epoch" in parse_settings(settings) or not saved.is_file():
        return config
    drop = RunConfig.load(saved).train.drop_epoch
    return config.change(train=config.train.change(drop_epoch=drop).model_dump())
