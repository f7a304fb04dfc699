import json
from pathlib import Path
from typing import Any, cast

import torch.multiprocessing as mp

from tests.tasks.gradients import TASK_SETS, WEIGHTINGS, compare


def test_two_ranks_have_the_gradient_of_one_for_every_loss_and_weighting(tmp_path: Path) -> None:
    cast(Any, mp).spawn(compare, args=(2, str(tmp_path)), nprocs=2)

    differences: dict[str, float] = json.loads((tmp_path / "differences.json").read_text())
    assert len(differences) == len(TASK_SETS) * len(WEIGHTINGS)
    assert {name: value for name, value in differences.items() if value > 1e-10} == {}
