"""A checkpoint comes back bit by bit, or is not a checkpoint."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hmtl_dist.engine.base import EngineState
from hmtl_dist.engine.checkpoint import (
    DamagedCheckpointError,
    complete_steps,
    load_checkpoint,
    load_newest,
    newest_manifest,
    save_checkpoint,
)
from hmtl_dist.errors import UserError
from tests.servers import S3Server


def make_state(step: int = 3) -> EngineState:
    weight = torch.arange(12.0).view(4, 3) / 7 + step
    return EngineState(
        model={
            "weight": weight,
            "tied": weight,
            "row": weight[1],
            "transposed": weight.t(),
            "count": torch.tensor(step),
            "half": torch.tensor([0.1, -0.0, float("inf")], dtype=torch.bfloat16),
            "nothing": torch.empty(0, 3),
        },
        optimizer={"weight/step": torch.tensor(float(step)), "weight/exp_avg": weight / 3},
        counters={"global_step": step, "micro_step": 2 * step},
    )


def save(url: str, step: int, *, keep_last: int | None = None, protected: tuple[str, ...] = ()) -> str:
    extras = {"objective": {"dwa/history": torch.tensor([1.0, 2.0])}}
    return save_checkpoint(
        url, step, make_state(step), extras, {"config": {"a": [1, 2.5]}}, keep_last=keep_last, protected=protected
    )


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and tensor.shape == other[name].shape
        and tensor.contiguous().view(-1).view(torch.uint8).equal(other[name].contiguous().view(-1).view(torch.uint8))
        for name, tensor in one.items()
    )


def assert_whole(url: str, step: int) -> None:
    state, extras, entries = load_checkpoint(url)
    expected = make_state(step)
    assert same_bits(state.model, expected.model)
    assert same_bits(state.optimizer, expected.optimizer)
    assert state.ema == {}
    assert state.counters == expected.counters
    assert torch.equal(extras["objective"]["dwa/history"], torch.tensor([1.0, 2.0]))
    assert entries == {"config": {"a": [1, 2.5]}}


def test_every_kind_of_tensor_comes_back_bit_by_bit(tmp_path: Path) -> None:
    url = save(str(tmp_path), 3)
    assert url == f"{tmp_path}/step-00000003"
    assert_whole(url, 3)


def test_it_lives_in_s3_as_well(s3_env: S3Server) -> None:
    url = f"{s3_env.bucket()}/run/checkpoints"
    for step in (3, 6, 9):
        save(url, step, keep_last=2)
    assert complete_steps(url) == [6, 9]
    assert newest(url) == f"{url}/step-00000009"
    assert_whole(f"{url}/step-00000006", 6)
    with pytest.raises(DamagedCheckpointError, match=r"step-00000003 is no checkpoint"):
        load_checkpoint(f"{url}/step-00000003")


def test_a_run_that_never_saved_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(str(tmp_path / "never")) is None
    assert complete_steps(str(tmp_path / "never")) == []


def test_it_holds_nothing_that_must_be_unpickled(tmp_path: Path) -> None:
    folder = Path(save(str(tmp_path), 3))
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def torn_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def bottomless_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


def altered_manifest(folder: Path) -> None:
    sealed = json.loads((folder / "manifest.json").read_text())
    sealed["content"]["counters"]["global_step"] += 1
    (folder / "manifest.json").write_text(json.dumps(sealed))


def missing_file(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def truncated_file(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])


def flipped_byte(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def newest(url: str) -> str:
    """Where the newest whole checkpoint is."""
    found = load_newest(url)
    assert found is not None
    return found[0]


DAMAGES = [
    no_manifest,
    torn_manifest,
    bottomless_manifest,
    altered_manifest,
    missing_file,
    truncated_file,
    flipped_byte,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(str(tmp_path), 3)
    damage(Path(save(str(tmp_path), 6)))
    with caplog.at_level(logging.WARNING):
        loaded = load_newest(str(tmp_path))
    assert "passing over step-00000006: " in caplog.text
    assert loaded is not None
    assert (loaded[0], loaded[1].counters["global_step"]) == (f"{tmp_path}/step-00000003", 3)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_loaded(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    url = save(str(tmp_path), 3)
    damage(Path(url))
    with pytest.raises(DamagedCheckpointError, match=r"step-00000003 is"):
        load_checkpoint(url)


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not no_manifest])
def test_where_none_is_whole_they_are_named_and_nothing_begins_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for step in range(1, 6):
        damage(Path(save(str(tmp_path), step)))
    said: list[str] = []
    with pytest.raises(DamagedCheckpointError) as caught:
        load_newest(str(tmp_path), said.append)
    assert [line.split(":")[0] for line in said] == [f"passing over step-0000000{step}" for step in (5, 4, 3, 2, 1)]
    told = str(caught.value)
    assert [f"step-0000000{step} is" in told for step in (5, 4, 3, 2)] == [True, True, True, False]
    assert "(and 2 more)" in told
    assert told.endswith("begin anew by `train` with --restart")


@pytest.mark.parametrize("damage", [torn_manifest, bottomless_manifest, altered_manifest])
def test_where_no_manifest_can_be_read_nothing_begins_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(Path(save(str(tmp_path), 3)))
    with pytest.raises(DamagedCheckpointError, match=r"^no checkpoint in .* is whole: checkpoint .*/step-00000003 is "):
        newest_manifest(str(tmp_path))


def test_a_writer_that_was_killed_at_its_first_checkpoint_has_left_none(tmp_path: Path) -> None:
    no_manifest(Path(save(str(tmp_path), 3)))
    said: list[str] = []
    assert load_newest(str(tmp_path), said.append) is None
    assert newest_manifest(str(tmp_path)) is None
    assert [line.split(":")[0] for line in said] == ["passing over step-00000003"]


def test_a_format_of_the_future_is_refused_rather_than_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmtl_dist.engine.checkpoint.FORMAT_VERSION", 2)
    save(str(tmp_path), 3)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has format 2, this program reads 1"):
        load_newest(str(tmp_path))


def test_only_the_newest_and_the_protected_are_kept(tmp_path: Path) -> None:
    best = save(str(tmp_path), 1)
    for step in range(2, 7):
        save(str(tmp_path), step, keep_last=2, protected=(best,))
    assert sorted(path.parent.name for path in tmp_path.glob("*/manifest.json")) == [
        "step-00000001",
        "step-00000005",
        "step-00000006",
    ]


def test_what_lay_damaged_behind_the_run_is_removed_and_never_the_one_just_written(tmp_path: Path) -> None:
    save(str(tmp_path), 3)
    flipped_byte(Path(save(str(tmp_path), 9)))
    url = save(str(tmp_path), 6, keep_last=1)
    assert newest(str(tmp_path)) == url
    assert [path.parent.name for path in tmp_path.glob("*/*.safetensors")] == ["step-00000006"] * 4


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    no_manifest(Path(save(str(tmp_path), 3)))
    assert_whole(save(str(tmp_path), 3), 3)


def test_the_engines_parts_are_not_for_others(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['ema'\] belong to the engine"):
        save_checkpoint(str(tmp_path), 1, make_state(), {"ema": {}}, {})
