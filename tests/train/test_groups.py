"""Figures by group beside the same figures of each group counted alone."""

import multiprocessing
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.engine.ranks import TorchRanks
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.base import Ranks, SingleRank
from hmtl_dist.tasks.classification import Classification, ClassificationConfig
from hmtl_dist.tasks.puzzling import Puzzling, PuzzlingConfig
from hmtl_dist.tasks.regression import Regression, RegressionConfig
from hmtl_dist.train.groups import Grouping, GroupMetrics, build_groupings, check_metrics

CPU = torch.device("cpu")
FIELDS = {
    "mood": Field(kind="category", classes=("calm", "glad", "cross")),
    "gender": Field(kind="category", classes=("female", "male", "not/said")),
    "age": Field(kind="number", unit="years"),
}
SUPERVISED = (
    Classification("mood", ClassificationConfig(), FIELDS["mood"].classes, ()),
    Regression("age", RegressionConfig(), FIELDS),
)
TASKS = (*SUPERVISED, Puzzling("puzzling", PuzzlingConfig()))
GENDER = Grouping("gender", ("female", "male", "not_said"))
BANDS = {"age": (20.0, 40.0)}


def samples(count: int = 120) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Outputs, labels and weights, with labels missing here and there and nobody of the third gender."""
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "mood": torch.randn(count, 3, generator=generator),
        "age": torch.randn(count, 1, generator=generator),
    }
    labels = {
        "mood": torch.randint(-1, 3, (count,), generator=generator),
        "gender": torch.randint(-1, 2, (count,), generator=generator),
        "age": torch.randint(5, 70, (count,), generator=generator).float(),
    }
    labels["age"][::9] = torch.nan
    weight = torch.ones(count)
    weight[::13] = 0
    return outputs, labels, weight


def counted(
    ranks: Ranks,
    keep: NDArray[np.bool] | None = None,
    metrics: tuple[str, ...] = (),
    groups: tuple[str, ...] = ("gender", "age"),
) -> dict[str, float]:
    """The figures of some of the samples, counted batch by batch."""
    outputs, labels, weight = samples()
    meter = GroupMetrics(TASKS, build_groupings(groups, BANDS, FIELDS), metrics, CPU, ranks)
    rows = np.arange(len(weight)) if keep is None else np.flatnonzero(keep)
    for start in range(0, len(rows), 15):
        part = torch.tensor(rows[start : start + 15])
        mine = [{name: values[part] for name, values in one.items()} for one in (outputs, labels)]
        meter.update(mine[0], mine[1], weight[part])
    return meter.compute()


def alone(keep: Tensor) -> dict[str, Mapping[str, float]]:
    """The figures of a part of the samples, as if there were no others."""
    outputs, labels, weight = samples()
    meter = {task.name: task.metrics(CPU, SingleRank()) for task in SUPERVISED}
    for name, one in meter.items():
        one.update(outputs[name], labels, weight * keep)
    return {name: one.compute() for name, one in meter.items()}


def test_a_groups_figures_are_those_of_its_samples_alone() -> None:
    found, labels = counted(SingleRank()), samples()[1]
    for number, name in ((0, "female"), (1, "male")):
        for task, metrics in alone(labels["gender"] == number).items():
            for metric, value in metrics.items():
                assert found[f"{task}/group/gender/{name}/{metric}"] == pytest.approx(value, rel=1e-6)


def test_bands_of_a_number_include_their_lower_end() -> None:
    grouping = build_groupings(["age"], BANDS, FIELDS)[0]
    ages = torch.tensor([19.9, 20.0, 39.0, 40.0, 70.0, torch.nan])
    assert grouping.names == ("under_20", "20_to_40", "40_and_over")
    assert torch.equal(grouping.numbers({"age": ages}), torch.tensor([0, 1, 1, 2, 2, -1]))


def test_the_gap_is_that_of_the_best_and_the_worst_group() -> None:
    found = counted(SingleRank())
    bands = [found[f"mood/group/age/{name}/accuracy"] for name in ("under_20", "20_to_40", "40_and_over")]
    assert found["mood/gap/age/accuracy"] == pytest.approx(max(bands) - min(bands))
    assert found["mood/gap/age/accuracy"] > 0
    errors = [found[f"age/group/gender/{name}/mae_age"] for name in ("female", "male")]
    assert found["age/gap/gender/mae_age"] == pytest.approx(abs(errors[0] - errors[1]))


def test_perfect_predictions_have_no_gap() -> None:
    _, labels, weight = samples()
    outputs = {
        "mood": torch.nn.functional.one_hot(labels["mood"].clamp_min(0), 3) * 100.0,
        "age": (labels["age"][:, None] - 40) / 20,
    }
    meter = GroupMetrics(TASKS, build_groupings(["gender"], {}, FIELDS), (), CPU, SingleRank())
    meter.update(outputs, labels, weight)
    found = meter.compute()
    gaps = {name: value for name, value in found.items() if "/gap/" in name}
    assert len(gaps) == 5
    assert list(gaps.values()) == pytest.approx([0.0] * 5, abs=1e-5)
    assert found["mood/group/gender/male/accuracy"] == 1.0


def test_one_answer_to_everything_has_the_gap_of_the_groups_own_shares() -> None:
    _, labels, weight = samples()
    calm = torch.tensor([[9.0, 0.0, 0.0]]).expand(len(weight), 3)
    meter = GroupMetrics(TASKS[:1], [GENDER], ("mood/accuracy",), CPU, SingleRank())
    meter.update({"mood": calm}, labels, weight)
    there = (weight > 0).numpy() & (labels["mood"] >= 0).numpy()
    shares = [(labels["mood"].numpy()[there & (labels["gender"] == k).numpy()] == 0).mean() for k in (0, 1)]
    assert meter.compute()["mood/gap/gender/accuracy"] == pytest.approx(abs(shares[0] - shares[1]))


def test_a_group_without_samples_is_left_out_and_the_others_say_how_many_they_have() -> None:
    found, (_, labels, weight) = counted(SingleRank()), samples()
    assert not any("not_said" in name for name in found)
    male = (labels["gender"] == 1) & (weight > 0)
    assert found["mood/group/gender/male/samples"] == int((male & (labels["mood"] >= 0)).sum())
    assert found["age/group/gender/male/samples"] == int((male & ~labels["age"].isnan()).sum())


def test_a_single_group_has_no_gap() -> None:
    outputs, labels, weight = samples()
    meter = GroupMetrics(TASKS, [GENDER], (), CPU, SingleRank())
    meter.update(outputs, labels, weight * (labels["gender"] == 0))
    assert not any("/gap/" in name for name in meter.compute())


def test_only_the_figures_that_were_asked_for_are_told() -> None:
    found = counted(SingleRank(), metrics=("mood/macro_f1",), groups=("gender",))
    assert set(found) == {
        "mood/gap/gender/macro_f1",
        *(f"mood/group/gender/{name}/{metric}" for name in ("female", "male") for metric in ("macro_f1", "samples")),
    }


def test_names_of_figures_are_those_that_are_told() -> None:
    outputs, labels, weight = samples()
    for task in SUPERVISED:
        meter = task.metrics(CPU, SingleRank())
        meter.update(outputs[task.name], labels, weight)
        assert set(task.metric_names()) == set(meter.compute())
    assert not TASKS[-1].metric_names()


def test_a_misspelt_label_and_a_number_without_bands_are_refused() -> None:
    with pytest.raises(UserError, match=r"^train\.groups: 'gendre' is not one of .*did you mean 'gender'\?"):
        build_groupings(["gendre"], {}, FIELDS)
    with pytest.raises(UserError, match=r"^train\.groups: 'age' is a number; say where .* train\.bands\.age=\[20,40\]"):
        build_groupings(["age"], {}, FIELDS)


def test_a_misspelt_figure_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^train\.gap_metrics: 'mood/acuracy' .* did you mean 'mood/accuracy'\?"):
        check_metrics(TASKS, ["mood/acuracy"])
    check_metrics(TASKS, ["mood/accuracy", "age/mae_age"])


def count_as_one_of_two(rank: int, folder: str) -> None:
    """One rank has all the men, the other everybody else; both write what they find together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    men = (samples()[1]["gender"] == 1).numpy()
    found = counted(TorchRanks(), men if rank else ~men)
    dist.destroy_process_group()
    np.save(Path(folder) / f"{rank}.npy", np.array([found[name] for name in sorted(found)]))


@pytest.mark.nightly
def test_two_ranks_with_unlike_shares_find_what_one_finds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=count_as_one_of_two, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    expected = counted(SingleRank())
    for rank in (0, 1):
        both = np.load(tmp_path / f"{rank}.npy")
        assert both == pytest.approx(np.array([expected[name] for name in sorted(expected)]), rel=1e-6)
