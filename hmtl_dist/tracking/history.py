# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Reads what MLflow holds of runs: facts, the history of figures, files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hmtl_dist.errors import UserError
from hmtl_dist.temporary import temporary_folder
from hmtl_dist.tracking.client import answering, open_client
from hmtl_dist.tracking.config import PARENT, TrackingConfig, tracking_uri
from hmtl_dist.tracking.redact import redact
from hmtl_dist.tracking.sink import last_steps, pictures_of

if TYPE_CHECKING:
    from mlflow.entities import Run

METRICS = ("accuracy", "mae", "ccc")
"""Figures of an evaluation that are drawn, in this order."""
MAX_METRICS = 12
"""Figures that are drawn."""
_PAGE = 500


@dataclass(frozen=True)
class RecordedRun:
    """A run as MLflow holds it."""

    run_id: str
    name: str
    status: str
    """MLflow's word: RUNNING, FINISHED, FAILED, KILLED."""
    began: float
    """Seconds since the epoch."""
    seconds: float
    """Wall time from its beginning to its end; 0 while it runs."""
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    """Last value of each figure."""
    steps: dict[str, int]
    """Step of that value."""
    datasets: tuple[str, ...]
    """Names of the data sets it saw."""

    @property
    def parent(self) -> str | None:
        """Id of the run it belongs to."""
        return self.tags.get(PARENT)


class History:
    """Runs of one MLflow.

    Every call raises UserError, in one line, where MLflow does not answer.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self._config = config
        self.address = redact(tracking_uri(config))
        """Of MLflow, without a password."""
        with answering(config):
            self._client = open_client(config)

    def of_experiment(self, name: str) -> list[RecordedRun]:
        """Return the runs of an experiment, the first one first; none where there is no such experiment."""
        with answering(self._config):
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                return []
            return self._search([experiment.experiment_id], "")

    def tagged(self, key: str, value: str) -> list[RecordedRun]:
        """Return the runs of all experiments with a tag, the first one first.

        Raises:
            UserError: The value has a quote in it, which no name here has.
        """
        if "'" in value:
            raise UserError(f"{value}: a name has no quote in it")
        with answering(self._config):
            return self._search(list(self.experiments().values()), f"tags.{key} = '{value}'")

    def experiments(self) -> dict[str, str]:
        """Return the ids of all experiments by their names, the newest first."""
        with answering(self._config):
            return {experiment.name: experiment.experiment_id for experiment in self._client.search_experiments()}

    def newest(self) -> str | None:
        """Return the name of the experiment with the newest run; None where there are no runs."""
        with answering(self._config):
            experiments = {number: name for name, number in self.experiments().items()}
            runs = self._client.search_runs(list(experiments), order_by=["attributes.start_time DESC"], max_results=1)
        return experiments[runs[0].info.experiment_id] if runs else None

    def curve(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return the history of a figure as (step, value), one value a step: the last one recorded."""
        with answering(self._config):
            points = self._client.get_metric_history(run_id, metric)
        return sorted({point.step: point.value for point in points}.items())

    def files(self, run_id: str, folder: str = "") -> list[str]:
        """Return the paths of the files and folders that lie directly in a folder of a run's artifacts."""
        with answering(self._config):
            return [file.path for file in self._client.list_artifacts(run_id, folder or None)]

    def pictures(self, run_id: str) -> dict[str, tuple[int, str]]:
        """Return the newest of each of a run's pictures, as (step, path) by name; learning curves are none."""
        with answering(self._config):
            recorded = pictures_of(self._client, run_id)
        newest = {name: (step, path) for (name, step), path in sorted(recorded.items())}
        newest.pop("learning_curves", None)
        return newest

    def read(self, run_id: str, path: str) -> bytes:
        """Return the contents of a file among a run's artifacts."""
        with answering(self._config), temporary_folder("artifact") as folder:
            return Path(self._client.download_artifacts(run_id, path, str(folder))).read_bytes()

    def _search(self, experiments: Sequence[str], text: str) -> list[RecordedRun]:
        found: list[RecordedRun] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                list(experiments), text, max_results=_PAGE, order_by=["attributes.start_time ASC"], page_token=token
            )
            found.extend(_recorded(run) for run in page)
            token = page.token
            if not token:
                return found


def told_metrics(runs: Iterable[RecordedRun]) -> list[str]:
    """Choose the figures to draw of runs: of evaluations by the order of METRICS, then losses in training."""
    present = dict.fromkeys(name for run in runs for name in run.metrics)
    evaluated = [name for name in present if name.startswith("eval/") and "/group/" not in name]
    ranked = [name for metric in METRICS for name in evaluated if name.endswith(f"/{metric}")]
    return [*ranked, *(name for name in present if name.startswith("train/loss/"))][:MAX_METRICS]


def _recorded(run: "Run") -> RecordedRun:
    info = run.info
    began, ended = (info.start_time or 0) / 1000, (info.end_time or 0) / 1000
    datasets = [entry.dataset.name for entry in run.inputs.dataset_inputs] if run.inputs else []
    return RecordedRun(
        run_id=info.run_id,
        name=info.run_name or info.run_id,
        status=info.status,
        began=began,
        seconds=max(0.0, ended - began) if ended else 0.0,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        steps=last_steps(run),
        datasets=tuple(dict.fromkeys(datasets)),
    )
