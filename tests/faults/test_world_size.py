"""One rank, then two, then one, in the middle of an epoch: the same samples in the same order, the same losses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing as mp

from hmtl_dist.run_config import RunConfig
from tests.e2e.drawn import EPOCHS, STEPS_PER_EPOCH, draw, tree
from tests.faults.chaos import losses
from tests.faults.world_size import part, two_ranks

pytestmark = pytest.mark.nightly

TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH
FIRST, SECOND = STEPS_PER_EPOCH - 1, 2 * STEPS_PER_EPOCH + 1
STAGES = (0, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, `whole`, and of a run for each ZeRO stage that changed its size twice."""
    root = tmp_path_factory.mktemp("sizes")
    url = draw(str(root / "set"))

    def config(name: str, **engine: Any) -> RunConfig:
        sections = tree(
            url,
            # without BatchNorm, dropout and drop-path, whose shares depend on the size
            model={"backbone": "test_convnext"},
            tasks={
                "expression": {"type": "classification", "dropout": 0},
                "puzzling": {"type": "puzzling", "dropout": 0},
            },
            engine={"ema_decay": 0.0, **engine},
        )
        sections["tasks"] = {name: sections["tasks"][name] for name in ("expression", "puzzling")}
        return RunConfig.model_validate({"name": name, **sections})

    configs = [config(f"zero{stage}", kind="deepspeed", zero_stage=stage) for stage in STAGES]
    assert part(config("whole", kind="plain"), root, TOTAL_STEPS) == TOTAL_STEPS
    assert [part(each, root, FIRST) for each in configs] == [FIRST] * 3
    mp.spawn(two_ranks, (configs, root, SECOND), nprocs=2)  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]
    assert [part(each, root, TOTAL_STEPS) for each in configs] == [TOTAL_STEPS] * 3
    return root


def ledger(run: Path) -> list[tuple[int, list[int]]]:
    """The global batch of every step, the ranks' shares end to end."""
    by_rank = [
        [json.loads(line) for line in (run / f"samples-{rank}.jsonl").read_text().splitlines()]
        for rank in (0, 1)
        if (run / f"samples-{rank}.jsonl").exists()
    ]
    other = {step: samples for step, _, samples in by_rank[1]} if len(by_rank) > 1 else {}
    return [(step, samples + (other[step] if size == 2 else [])) for step, size, samples in by_rank[0]]


@pytest.mark.parametrize("stage", STAGES)
def test_every_step_takes_the_same_samples_in_the_same_order(folder: Path, stage: int) -> None:
    whole = ledger(folder / "whole")
    assert [step for step, _ in whole] == list(range(1, TOTAL_STEPS + 1))
    assert ledger(folder / f"zero{stage}") == whole


@pytest.mark.parametrize("stage", STAGES)
def test_losses_agree_with_the_uninterrupted_run(folder: Path, stage: int) -> None:
    whole = losses(folder / "whole" / "rank-0" / "journal.jsonl")
    changed = losses(folder / f"zero{stage}" / "rank-0" / "journal.jsonl")
    assert [step for step, _ in changed] == list(range(1, TOTAL_STEPS + 1))
    assert [loss for _, loss in changed] == pytest.approx([loss for _, loss in whole], abs=1e-4)
