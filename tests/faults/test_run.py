"""Whole runs of the command line, in processes of their own, on faulty data and faulty ways."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.dataset.tables import encode_table
from hmtl_dist.data.dataset.writing import (
    ShardRecord,
    ShardSample,
    sample_columns,
    shard_record,
    write_dataset,
    write_index,
    write_tar,
)
from hmtl_dist.data.storage import open_storage
from tests.data.stream.streaming import jpeg
from tests.e2e.drawn import journal, tree, weights
from tests.faults import proxy as faults
from tests.servers import S3Server

pytestmark = pytest.mark.nightly

FIELDS = {"mood": Field(kind="category", classes=("calm", "glad")), "age": Field(kind="number", unit="years")}
SHARD_SAMPLES, SHARDS = 24, 3


def put(
    url: str,
    folder: Path,
    *,
    broken: tuple[int, ...] = (),
    wrong: Callable[[dict[str, Any]], None] = lambda columns: None,
) -> str:
    """Write a set of two splits; `broken` samples of `train` are no pictures, `wrong` changes its tables."""
    storage = open_storage(url)
    for split, shards in (("train", SHARDS), ("val", 1)):
        records: list[ShardRecord] = []
        for shard in range(shards):
            samples = [
                ShardSample(
                    key=f"{split}-{number:06d}",
                    extension="jpg",
                    picture=b"no picture" * 50 if split == "train" and number in broken else jpeg(number),
                    labels={"mood": FIELDS["mood"].classes[number % 2], "age": float(number)},
                )
                for number in range(shard * SHARD_SAMPLES, (shard + 1) * SHARD_SAMPLES)
            ]
            rows, num_bytes, sha256 = write_tar(folder / "shard.tar", samples, None)
            columns = sample_columns(rows, FIELDS, None)
            if split == "train":
                wrong(columns)
            table = encode_table(columns)
            name = f"{split}/shard-{shard:06d}"
            storage.upload(f"{name}.tar", folder / "shard.tar")
            storage.write(f"{name}.npz", table)
            # counted without the labels, which `wrong` may have made uncountable
            record = shard_record(f"{name}.tar", table, {}, num_bytes=num_bytes, sha256=sha256)
            records.append(replace(record, label_counts={"mood": np.array([12, 12])}))
        write_index(storage, "moods", split, records, fields=FIELDS, group=None)
    write_dataset(storage, "moods", ["train", "val"])
    return url


def train(folder: Path, name: str, url: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
    """One minute run on two data-loader processes, its files under `folder/NAME`."""
    sections = tree(
        url,
        data={"num_workers": 2, "lanes": 4, "batch_size": 8},
        tasks={"mood": {"type": "classification"}, "age": {"type": "regression"}},
        weighting={"type": "sum"},
        train={"epochs": 2, "report_every_steps": 3},
    )
    del sections["tasks"]["expression"], sections["tasks"]["pose"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sections))
    return subprocess.run(
        [sys.executable, "-m", "hmtl_dist", "train", str(folder / "recipe.yaml"), f"name={name}", *overrides],
        env=os.environ | {"HMTL_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def metrics(events: list[dict[str, Any]], name: str) -> list[float]:
    return [event["values"][name] for event in events if name in event.get("values", {})]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_a_faulty_way_changes_no_weight_and_is_counted_in_the_journal(folder: Path, s3_env: S3Server) -> None:
    url = put(f"{s3_env.bucket()}/moods", folder)
    plain = train(folder, "plain", url)
    with faults.serve(s3_env.endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        kinds = [faults.reset(), faults.cut(900), faults.status(503, "SlowDown"), faults.flip(600)]
        proxy.plan = faults.Chaos(3, 0.3, kinds, r"train/shard-.*tar")
        faulty = train(folder, "faulty", url)
        assert proxy.hits > 3
    assert (plain.returncode, faulty.returncode) == (0, 0), plain.stderr + faulty.stderr
    runs = folder / "home" / "runs"
    last = f"checkpoints/step-{2 * SHARD_SAMPLES * SHARDS // 8:08d}"
    assert weights(str(runs / "faulty" / last)) == weights(str(runs / "plain" / last))
    assert sum(metrics(journal(runs / "plain"), "data/retries")) == 0
    assert 1 <= sum(metrics(journal(runs / "faulty"), "data/retries")) <= proxy.hits


def test_damaged_samples_are_counted_and_named_in_the_journal(folder: Path, s3_env: S3Server) -> None:
    url = put(f"{s3_env.bucket()}/moods", folder, broken=(5, 30))
    ended = train(folder, "damaged", url, "data.max_bad_share=0.1")
    assert ended.returncode == 0, ended.stderr
    events = journal(folder / "home" / "runs" / "damaged")
    assert sum(metrics(events, "data/damaged")) == 4  # two samples in each of two epochs
    named = [(event["key"], event["shard"]) for event in events if event["event"] == "damaged"]
    assert sorted(named) == sorted(
        2 * [("train-000005", f"{url}/train/shard-000000.tar"), ("train-000030", f"{url}/train/shard-000001.tar")]
    )


def test_too_many_damaged_samples_end_the_run_and_are_still_named(folder: Path, s3_env: S3Server) -> None:
    url = put(f"{s3_env.bucket()}/moods", folder, broken=(*range(0, 72, 3),))
    ended = train(folder, "bad", url, "data.max_bad_share=0.1")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "pictures cannot be decoded" in ended.stderr
    events = journal(folder / "home" / "runs" / "bad")
    assert [event for event in events if event["event"] == "damaged"]
    assert events[-1]["status"] == "FAILED"


def too_high(columns: dict[str, Any]) -> None:
    columns["label.mood"][7] = 2


def test_a_label_out_of_range_ends_the_run_in_one_line(folder: Path, s3_env: S3Server) -> None:
    url = put(f"{s3_env.bucket()}/moods", folder, wrong=too_high)
    ended = train(folder, "range", url)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "sample train-000" in ended.stderr
    assert "has mood 2, which is not one of 2 classes" in ended.stderr
    assert json.dumps(url)[1:-1] in ended.stderr
    assert len(open_index(url, "train")) == SHARDS
