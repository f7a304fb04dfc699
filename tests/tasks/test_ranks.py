import json
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
import torch.multiprocessing as mp

from tests.tasks.gradients import TASK_SETS, WEIGHTINGS, compare

ALL = list(product(TASK_SETS, WEIGHTINGS))
EACH = [(name, WEIGHTINGS[number % len(WEIGHTINGS)]) for number, name in enumerate(TASK_SETS)]
"""Every loss once, and every weighting."""


@pytest.mark.parametrize("pairs", [EACH, pytest.param(ALL, marks=pytest.mark.nightly)], ids=["each", "all"])
def test_two_ranks_have_the_gradient_of_one_for_every_loss_and_weighting(
    tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    assert ({name for name, _ in pairs}, {kind for _, kind in pairs}) == (set(TASK_SETS), set(WEIGHTINGS))

    cast(Any, mp).spawn(compare, args=(2, str(tmp_path), pairs), nprocs=2)

    differences: dict[str, float] = json.loads((tmp_path / "differences.json").read_text())
    assert len(differences) == len(pairs)
    assert {name: value for name, value in differences.items() if value > 1e-10} == {}
