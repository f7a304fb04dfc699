"""What an own Ray leaves out; that it trains is tested beside the rest of Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

BUILD = """
import sys
from pathlib import Path
from hmtl_dist.launch.ray_cluster import Cluster
from hmtl_dist.launch.ray_train import _trainer
from ray import cloudpickle
from hmtl_dist.train.base import RunContext
from tests.launch.drive import config

cluster = Cluster(own=True, scratch=Path(sys.argv[1]))
trainer = _trainer(config(kind="ray"), RunContext(sys.argv[1]), None, None, cluster)
handed = (type(trainer), trainer.train_run_context, trainer._create_default_callbacks())
Path(sys.argv[1], "handed").write_bytes(cloudpickle.dumps(handed))
"""
TAKE = """
import sys
from pathlib import Path
from ray import cloudpickle

cloudpickle.loads(Path(sys.argv[1], "handed").read_bytes())
print(sorted({"torch", "mlflow", "deepspeed", "timm", "hmtl_dist.run_config"} & set(sys.modules)))
"""


@pytest.mark.nightly
def test_what_the_controller_is_handed_makes_it_import_neither_torch_nor_the_rest_of_this_package(
    tmp_path: Path,
) -> None:
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], check=True)
    taken = subprocess.run([sys.executable, "-c", TAKE, str(tmp_path)], check=True, capture_output=True, text=True)
    assert taken.stdout == "[]\n"
