"""Evaluation of a saved run's frozen features, in this process."""

from dataclasses import dataclass
from pathlib import Path

from hmtl_dist.config.io import home
from hmtl_dist.data.dataset.index import open_dataset
from hmtl_dist.errors import UserError
from hmtl_dist.launch.evaluate import load_run
from hmtl_dist.launch.threads import num_threads, torch_threads
from hmtl_dist.train.features import load_features
from hmtl_dist.train.probe import ProbeMetrics, ProbeSettings, probe
from hmtl_dist.train.saving import saved_config


@dataclass(frozen=True)
class Probed:
    """What a probe found, and on what."""

    metrics: ProbeMetrics
    checkpoint: str
    cached: bool
    """Whether the features were there already."""
    num_samples: int
    grouped: bool
    """Whether the data set says who belongs together."""
    seen: bool
    """Whether the run was trained on some of these pictures."""


def probe_run(
    run: str, settings: ProbeSettings, *, label: str, data: str | None = None, splits: tuple[str, ...] = ()
) -> Probed:
    """Evaluate the frozen features of a run's last checkpoint; averaged weights where the run kept some.

    Args:
        run: Name of a run in the home folder, or folder or URL of a run or of one checkpoint.
        settings: How the head is learned.
        label: Category label to learn.
        data: Data set; the run's own by default.
        splits: Splits of it to join and cut into folds; by default all of another set, and of the run's own the one
            that it was evaluated on, since it has seen the others.

    Raises:
        UserError: There is no such run, data set, split or label; or folds cannot be cut.
    """
    checkpoint, state, _, manifest = load_run(run)
    config = saved_config(manifest)
    own = data is None or data == config.data.url
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"url": data})})
    elif config.data.eval_url is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"url": config.data.eval_url})})
    there = open_dataset(config.data.url).splits
    if data is None and not splits and config.data.folds is None:
        splits = (config.data.eval_split,)
    if unknown := [split for split in splits if split not in there]:
        raise UserError(f"--split {unknown[0]}: {config.data.url} has {', '.join(there)}")
    folder: Path = home() / "features"
    with torch_threads(num_threads(config.launch)):
        found, cached = load_features(config, state.ema or state.model, splits or there, label, folder)
        metrics = probe(found, settings)
    seen = own and (config.data.folds is not None or config.data.train_split in (splits or there))
    return Probed(metrics, checkpoint, cached, len(found.labels), found.grouped, seen)
