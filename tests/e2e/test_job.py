"""A plain `ray job submit` to a cluster that asks for a token: from S3, through Ray Train, back into S3."""

import json

import pytest

from hmtl_dist.data.storage import S3Storage
from tests.e2e.nodes import TINY, draw, one_node, outcome, plain
from tests.servers import S3Server

pytestmark = pytest.mark.slow


def test_a_plain_job_trains_and_keeps_its_checkpoint_in_s3(s3: S3Server) -> None:
    with one_node(s3.env(), s3.bucket()) as cluster:
        data = draw(f"{cluster.bucket}/faces", s3.env())
        settings = [f"data.url={data}", f"launch.storage={cluster.bucket}/runs", "name=plain", *TINY]
        settings += ["launch.num_workers=1"]
        job = plain(cluster, "python", "-m", "hmtl_dist", "train", "demo", "--json", *settings)

    assert job.returncode == 0, job.stdout + job.stderr
    assert "succeeded" in job.stdout
    assert (outcome(job.stdout)["status"], outcome(job.stdout)["global_step"]) == ("FINISHED", 2)
    manifest = S3Storage(f"{cluster.bucket}/runs/plain/checkpoints", s3.access).read("step-00000002/manifest.json")
    assert json.loads(manifest)["content"]["entries"]["world_size"] == 1
