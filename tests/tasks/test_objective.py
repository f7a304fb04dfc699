from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.base import Prepared, SingleRank, Task
from hmtl_dist.tasks.classification import ClassificationConfig
from hmtl_dist.tasks.inpainting import Inpainting, InpaintingConfig
from hmtl_dist.tasks.objective import Objective, wire
from hmtl_dist.tasks.puzzling import Puzzling, PuzzlingConfig
from hmtl_dist.tasks.registry import AnyTaskConfig, build_tasks
from hmtl_dist.tasks.weighting import WeightingConfig
from tests.tasks.batches import make_inputs

FIELDS = {
    "gender": Field(kind="category", classes=("f", "m")),
    "mood": Field(kind="category", classes=("good", "bad", "none")),
}


class CountingRanks(SingleRank):
    """Counts the collectives."""

    def __init__(self) -> None:
        self.reduced = 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        self.reduced += 1
        return super().all_reduce_sum(tensor)


def build(**pretext: AnyTaskConfig) -> list[Task]:
    configs: dict[str, AnyTaskConfig] = {
        "gender": ClassificationConfig(weight=2.0),
        "mood": ClassificationConfig(),
        **pretext,
    }
    return build_tasks(configs, FIELDS, {}, {}, 24)


def answer(objective: Objective, views: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Outputs of the right shapes, in place of a model's."""
    sizes = {"gender": 2, "mood": 3, "puzzling": 16}
    generator = torch.Generator().manual_seed(0)
    return {
        task: {
            view: torch.rand(len(views[view]), sizes[task], generator=generator, dtype=torch.float64).requires_grad_()
            for view in read
        }
        for task, read in objective.wiring.items()
    }


LABELS = {"gender": torch.tensor([0, 1, -1, 1]), "mood": torch.full((4,), -1)}


@pytest.mark.parametrize(
    ("puzzling", "inpainting", "views"),
    [
        (None, None, ("clean",)),
        ("corrupted", None, ("puzzling",)),
        ("clean", None, ("clean",)),
        ("both", None, ("clean", "puzzling")),
        ("corrupted", "clean", ("puzzling", "clean")),
        ("corrupted", "corrupted", ("puzzling", "inpainting")),
        ("both", "both", ("clean", "puzzling", "inpainting")),
    ],
)
def test_supervised_heads_read_what_the_pretext_tasks_ask_for(
    puzzling: str | None, inpainting: str | None, views: tuple[str, ...]
) -> None:
    tasks = build()
    if puzzling:
        tasks.append(Puzzling("puzzling", PuzzlingConfig.model_validate({"supervise": puzzling})))
    if inpainting:
        tasks.append(Inpainting("inpainting", InpaintingConfig.model_validate({"supervise": inpainting}), None))

    assert wire(tasks)["gender"] == views


def test_a_pretext_task_reads_its_own_view() -> None:
    assert wire(build(puzzling=PuzzlingConfig()))["puzzling"] == ("puzzling",)


def test_the_clean_view_is_made_only_if_it_is_read() -> None:
    objective = Objective(build(puzzling=PuzzlingConfig()), WeightingConfig(), SingleRank())

    assert list(objective.prepare(make_inputs())[0]) == ["puzzling"]


def test_a_step_takes_one_collective() -> None:
    ranks = CountingRanks()
    objective = Objective(build(puzzling=PuzzlingConfig()), WeightingConfig(), ranks)
    inputs = make_inputs(labels=LABELS)
    views, prepared = objective.prepare(inputs)

    objective.losses(answer(objective, views), prepared, inputs)

    assert ranks.reduced == 1


def test_the_total_is_the_weighted_sum_of_the_means() -> None:
    objective = Objective(build(), WeightingConfig(), SingleRank())
    inputs = make_inputs(labels={"gender": torch.tensor([0, 1, -1, 1]), "mood": torch.tensor([2, -1, -1, 0])})
    views, prepared = objective.prepare(inputs)
    outputs = answer(objective, views)

    total = objective.losses(outputs, prepared, inputs).total

    means = [
        torch.nn.functional.cross_entropy(outputs[name]["clean"], inputs.labels[name], ignore_index=-1)
        for name in ("gender", "mood")
    ]
    torch.testing.assert_close(total, 2 * means[0] + means[1])


@pytest.mark.parametrize("weighting", ["sum", "geometric", "dwa"])
def test_a_label_missing_everywhere_has_no_loss_and_a_zero_gradient(weighting: str) -> None:
    objective = Objective(build(), WeightingConfig.model_validate(weighting), SingleRank())
    inputs = make_inputs(labels=LABELS)
    views, prepared = objective.prepare(inputs)
    outputs = answer(objective, views)

    losses = objective.losses(outputs, prepared, inputs)

    assert losses.by_task["mood"] == 0
    assert torch.equal(
        torch.autograd.grad(losses.total, outputs["mood"]["clean"])[0], torch.zeros(4, 3, dtype=torch.float64)
    )


def test_a_sample_of_weight_zero_changes_nothing() -> None:
    objective = Objective(build(puzzling=PuzzlingConfig()), WeightingConfig(), SingleRank())
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    inputs = make_inputs(labels=LABELS, weight=weight)
    views, prepared = objective.prepare(inputs)
    outputs = answer(objective, views)

    total = objective.losses(outputs, prepared, inputs).total
    for read in outputs.values():
        for value in read.values():
            value.data[3] = 1e3
    again = objective.losses(outputs, prepared, inputs).total

    assert torch.equal(total, again)


def test_sums_of_two_batches_give_the_means_of_both() -> None:
    objective = Objective(build(), WeightingConfig(), SingleRank())
    whole = make_inputs(num_samples=6, labels={name: values.repeat(2)[:6] for name, values in LABELS.items()})
    views, prepared = objective.prepare(whole)
    outputs = answer(objective, views)

    sums: list[Tensor] = []
    for rows in (slice(0, 4), slice(4, 6)):
        part = make_inputs(whole.images[rows], {name: values[rows] for name, values in whole.labels.items()})
        part_of = {task: {view: value[rows] for view, value in read.items()} for task, read in outputs.items()}
        sums.append(objective.sums(part_of, {task.name: Prepared() for task in objective.tasks}, part))
    means = objective.means(sums[0] + sums[1])

    expected = objective.losses(outputs, prepared, whole)
    torch.testing.assert_close(means.losses, dict(expected.by_task))
    torch.testing.assert_close(means.metrics, dict(expected.metrics))


def test_a_cut_out_covers_the_puzzle_but_not_the_masked_picture() -> None:
    augment = AugmentConfig(cutout_probability=1.0, cutout_side=0.5)
    tasks = build(puzzling=PuzzlingConfig(), inpainting=InpaintingConfig(perceptual_weight=0.0))
    inputs = make_inputs()

    views, prepared = Objective(tasks, WeightingConfig(), SingleRank(), augment).prepare(inputs)

    changed = (views["puzzling"] != prepared["puzzling"].views["puzzling"]).any(1).sum((1, 2))
    assert changed.numpy().tolist() == [144] * 4
    assert torch.equal(views["inpainting"], prepared["inpainting"].views["inpainting"])


def test_the_state_comes_back() -> None:
    inputs = make_inputs(labels=LABELS)
    first, second = (Objective(build(), WeightingConfig(type="dwa"), SingleRank()) for _ in range(2))
    views, prepared = first.prepare(inputs)
    for _ in range(2):
        first.losses(answer(first, views), prepared, inputs)
        first.end_epoch()

    second.load_state(first.state())

    assert set(first.state()) == {"weighting/sum", "weighting/count", "weighting/last", "weighting/before"}
    torch.testing.assert_close(second.state(), first.state())


@pytest.mark.parametrize("name", ["clean", "weighting", "a/b", "a.b", "type", "training"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^tasks\.{name}: the name may not be"):
        build_tasks({name: PuzzlingConfig()}, FIELDS, {}, {}, 24)


def test_a_pretext_task_may_take_every_second_sample() -> None:
    inputs = make_inputs(num_samples=6)
    whole = Objective(build(puzzling=PuzzlingConfig(supervise="clean")), WeightingConfig(), SingleRank())
    half = Objective(build(puzzling=PuzzlingConfig(supervise="clean", every=2)), WeightingConfig(), SingleRank())

    views, prepared = whole.prepare(inputs)
    half_views, half_prepared = half.prepare(inputs)

    assert torch.equal(half_views["puzzling"], views["puzzling"][::2])
    assert torch.equal(half_prepared["puzzling"].targets["tiles"], prepared["puzzling"].targets["tiles"][::2])
    assert len(half_views["clean"]) == 6


def test_the_model_answers_for_views_of_different_sizes() -> None:
    inputs = make_inputs(num_samples=6, size=32, labels={name: torch.zeros(6, dtype=torch.int64) for name in FIELDS})
    tasks = build(puzzling=PuzzlingConfig(supervise="clean", every=3))
    objective = Objective(tasks, WeightingConfig(), SingleRank())
    model = HMTLModel(ModelConfig(backbone="test_convnext"), objective.heads(), objective.wiring).eval()
    views, prepared = objective.prepare(inputs)

    outputs = model(views)
    losses = objective.losses(outputs, prepared, inputs)

    assert outputs["puzzling"]["puzzling"].shape == (2, 16)
    assert torch.allclose(outputs["gender"]["clean"], model.predict(inputs.images)["gender"], atol=1e-6)
    assert losses.total.isfinite()


def test_supervised_heads_cannot_read_a_view_of_some_samples() -> None:
    with pytest.raises(ValueError, match="every=2 needs supervise=clean, given both"):
        PuzzlingConfig(supervise="both", every=2)
