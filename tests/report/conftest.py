# pyright: reportUnknownMemberType=false
"""Runs of a suite with two rows and three seeds, made up on a real MLflow server."""

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from hmtl_dist.reproduce.results import Result
from hmtl_dist.reproduce.suite import Row, Suite
from hmtl_dist.reproduce.table import Line, as_csv, build_table
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.plots import write_confusion_matrix

ROWS = {"sl": 61.0, "puzzling": 64.0}
STEPS = (10, 20, 30)


def lines() -> list[Line]:
    rows = {
        "sl": Row(title="Supervised <alone>", recipe="synthetic_sl", paper=60.8),
        "puzzling": Row(title="Puzzling", recipe="synthetic_clean", baseline="sl"),
    }
    suite = Suite(title="Faces & puzzles", metric="expression/accuracy", rows=rows)
    results = {
        f"made.{row}.s{seed}": Result(
            run=f"made.{row}.s{seed}",
            row=row,
            seed=seed,
            status="FINISHED",
            settings={},
            metrics={"eval/expression/accuracy": (mean + seed) / 100},
            images=640,
            seconds=120,
        )
        for row, mean in ROWS.items()
        for seed in (0, 1, 2)
    }
    return build_table(suite, "made", (0, 1, 2), results)


def record_run(client: MlflowClient, experiment: str, row: str, seed: int, folder: Path, parent: str) -> None:
    tags = {"suite": "made", "row": row, "seed": str(seed), "mlflow.parentRunId": parent}
    run = client.create_run(experiment, run_name=f"made.{row}.s{seed}", tags=tags).info.run_id
    client.log_param(run, "data.batch_size", 16)
    for step in STEPS:
        client.log_metric(run, "train/loss/expression", 2 - step / 20 + seed / 10, step=step)
        client.log_metric(run, "train/epoch", step / 10, step=step)
    client.log_metric(run, "eval/expression/accuracy", (ROWS[row] + seed) / 100, step=30)
    client.log_metric(run, "cost/run", 0.25, step=30)
    for step, count in ((10, 1), (30, 7)):
        for path in write_confusion_matrix(folder, "expression", np.array([[count, 1], [2, 5]]), ["calm", "happy"]):
            client.log_artifact(run, str(path), f"evaluation/step-{step:08d}")
    if row == "puzzling":
        for step in (10, 30):
            client.log_image(run, np.full((8, 16, 3), step, np.uint8), key="puzzling/solved", step=step)
        client.log_image(run, np.zeros((8, 8, 3), np.uint8), key="learning_curves", step=30)
    client.set_terminated(run, status="FAILED" if (row, seed) == ("sl", 2) else "FINISHED")


@pytest.fixture(scope="session")
def tracking(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    folder = tmp_path_factory.mktemp("report")
    client = MlflowClient(mlflow_server)
    experiment = client.create_experiment("made-experiment")
    tags = {"suite": "made", "title": "Faces & puzzles"}
    parent = client.create_run(experiment, run_name="reproduce made", tags=tags).info.run_id
    (folder / "table.csv").write_text(as_csv(lines()))
    client.log_artifact(parent, str(folder / "table.csv"))
    for row in ROWS:
        for seed in (0, 1, 2):
            record_run(client, experiment, row, seed, folder, parent)
    client.create_experiment("made-empty")
    return TrackingConfig(uri=mlflow_server)
