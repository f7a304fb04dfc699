"""Two ranks: DeepSpeed against the plain engine, resuming across engines, accumulation, EMA."""

import json
import os
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from filelock import FileLock

from hmtl_dist.engine.base import EngineState
from hmtl_dist.engine.checkpoint import load_checkpoint
from tests.engine.nets import STEPS, difference, make_engine, train
from tests.engine.two_ranks import KINDS, explore

Figures = dict[str, float]
NAMES = list(KINDS)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the one exploration, shared by all test processes."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two-ranks"
    root.mkdir(exist_ok=True)
    with FileLock(root / "lock"):
        if not (root / "figures.json").exists():
            mp.spawn(explore, (root,), nprocs=2)  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]
    return root


@pytest.fixture(scope="session")
def metrics(folder: Path) -> Figures:
    return json.loads((folder / "figures.json").read_text())


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2"])
def test_deepspeed_is_bit_identical_to_the_plain_engine(metrics: Figures, name: str) -> None:
    assert metrics[name] == 0


def test_with_the_default_settings_too(metrics: Figures) -> None:
    assert metrics["defaults zero0"] == 0


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2"])
def test_under_bf16_autocast_too(metrics: Figures, name: str) -> None:
    assert metrics[f"bf16 {name}"] == 0


def test_clipping_at_zero_0_is_bit_identical(metrics: Figures) -> None:
    assert metrics["clipping moved"] > 0
    assert metrics["clipped zero0"] == 0


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_clipping_with_sharded_gradients_differs_by_rounding_alone(metrics: Figures, name: str) -> None:
    assert metrics[f"clipped {name}"] < 1e-4


@pytest.mark.parametrize("name", ["plain", "zero1"])
def test_the_same_run_twice_gives_the_same_bits(metrics: Figures, name: str) -> None:
    assert metrics[f"again {name}"] == 0


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_a_checkpoint_goes_on_in_any_engine_as_if_uninterrupted(metrics: Figures, source: str, target: str) -> None:
    assert metrics[f"resume {source} -> {target}"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_two_half_batches_make_the_step_of_the_whole_batch(metrics: Figures, name: str) -> None:
    assert metrics[f"accumulation {name}"] < 1e-6
    assert metrics[f"accumulation {name} micro-steps"] == STEPS


def test_the_averaged_weights_are_those_computed_by_hand(metrics: Figures) -> None:
    assert metrics["ema"] < 1e-6 < metrics["ema moved"]


def test_ranks_evaluate_the_same_batchnorm_statistics(metrics: Figures) -> None:
    assert metrics["buffers on ranks"] == 0


def test_gathering_is_differentiable_in_the_own_part_and_summing_is_not(metrics: Figures) -> None:
    assert metrics["gathered"] == 1
    assert metrics["own gradient"] == 10
    assert metrics["sum"] == 3
    assert metrics["sum has gradient"] == 0


def test_rank_0_reads_for_all_and_a_refusal_is_raised_by_all(metrics: Figures) -> None:
    assert metrics["tensors given"] == 2
    assert metrics["weights read"] == 2
    assert metrics["said"] == 2
    assert metrics["reads"] == 2  # one that is answered, one that is refused
    assert metrics["refused"] == 2


def test_rank_0_alone_holds_a_copy_of_the_state(metrics: Figures) -> None:
    assert metrics["both held something"] == 1
    assert metrics["held on rank 1"] == 0


def test_deepspeed_prints_nothing_and_compiles_nothing(folder: Path, metrics: Figures) -> None:
    assert metrics
    assert [(folder / f"printed-{rank}").read_bytes() for rank in range(2)] == [b"", b""]
    assert not (folder / "extensions").exists()


def test_deepspeed_does_not_load_mlflow_for_its_autotuner(metrics: Figures) -> None:
    assert not metrics["mlflow is loaded"]


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_goes_on_where_two_stopped(folder: Path, metrics: Figures, name: str) -> None:
    assert metrics
    state, _, entries = load_checkpoint(str(folder / "checkpoints" / "step-00000002"))
    assert entries == {"kind": "zero1"}
    engine = make_engine(KINDS[name].model_copy(update={"ema_decay": 0.9}), seed=7)
    try:
        engine.load_state(state)
        restored: EngineState = engine.state()
        assert difference(restored, state) == 0
        train(engine, STEPS)
        assert engine.global_step == STEPS
    finally:
        engine.close()


@pytest.mark.parametrize("setting", ["", "clipped "])
@pytest.mark.parametrize("name", NAMES)
def test_a_planted_nan_is_seen_and_the_skipped_step_leaves_no_trace(metrics: Figures, name: str, setting: str) -> None:
    assert metrics[f"{setting}finite {name}"] == 1
    assert metrics[f"{setting}planted seen {name}"] > 0
    assert metrics[f"{setting}skipped {name}"] == 0
    assert metrics[f"{setting}went on {name}"] == 1
