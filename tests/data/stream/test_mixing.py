"""Several sets as one: labels united by name, samples numbered on, each read from where it lies."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from hmtl_dist.data.config import DataConfig, MixedSet
from hmtl_dist.data.dataset.index import ShardIndex
from hmtl_dist.data.dataset.schema import Field, LabelValue
from hmtl_dist.data.stream.batches import Batch, Stream
from hmtl_dist.data.stream.mixing import MixedIndex, aligned, united_fields
from hmtl_dist.data.stream.plan import Plan
from hmtl_dist.data.stream.selection import Selection, open_training
from hmtl_dist.errors import UserError
from tests.data.stream.streaming import FIELDS, MOODS, Resize, jpeg, make_set
from tests.data.stream.test_batches import assert_same, kept

OTHER = {
    "mood": Field(kind="category", classes=("cross", "calm")),
    "age": Field(kind="number", unit="years"),
    "sex": Field(kind="category", classes=("f", "m")),
}


def other_labels(n: int) -> dict[str, LabelValue]:
    return {"mood": (None, "cross", "calm")[n % 3], "age": float(n), "sex": "fm"[n % 2]}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardIndex, ShardIndex]:
    folder = tmp_path_factory.mktemp("sets")
    first = make_set(str(folder / "first"), folder, [30, 1, 45, 24])
    return first, make_set(str(folder / "second"), folder, [16, 16], fields=OTHER, labels=other_labels)


def field_set(folder: Path, name: str, field: Field) -> ShardIndex:
    return make_set(str(folder / name), folder, [1], fields={"mood": field}, labels=lambda n: {"mood": None})


def mixed(sets: tuple[ShardIndex, ShardIndex], ratio: float | None) -> tuple[DataConfig, Selection]:
    config = DataConfig(url=sets[0].url, image_size=32, num_workers=0, mix=(MixedSet(url=sets[1].url, ratio=ratio),))
    return config, open_training(config)


def plan_of(selection: Selection) -> Plan:
    return Plan(
        selection.index.num_samples, batch_size=24, lanes=6, seed=7, shuffle=True, block=16, pools=selection.pools
    )


def test_a_mix_has_the_labels_of_all_sets_found_by_name_and_missing_where_a_set_has_none(
    sets: tuple[ShardIndex, ShardIndex],
) -> None:
    index = MixedIndex(sets, united_fields(sets))
    assert index.header.fields == FIELDS | {"age": OTHER["age"], "sex": OTHER["sex"]}
    first, second = index.samples(2), index.samples(5)
    assert first.labels["mood"].tolist() == sets[0].samples(2).labels["mood"].tolist()
    assert (first.labels["sex"] == -1).all()
    assert np.isnan(first.labels["age"]).all()
    codes: list[int] = second.labels["mood"].tolist()
    names = [None if code < 0 else MOODS[code] for code in codes]
    assert names == [other_labels(n)["mood"] for n in range(16, 32)]
    assert np.isnan(second.labels["yaw"]).all()
    assert second.labels["age"].tolist() == list(range(16, 32))
    assert index.header.label_counts["mood"] == [27 + 10, 26, 27 + 11]


def test_the_larger_list_of_classes_rules_whichever_set_has_it(sets: tuple[ShardIndex, ShardIndex]) -> None:
    index = MixedIndex(sets[::-1], united_fields(sets[::-1]))
    assert index.header.fields["mood"].classes == MOODS
    codes = aligned(sets[1], index.header.fields).samples(0).labels["mood"]
    assert codes.tolist() == index.samples(0).labels["mood"].tolist()


def test_a_copy_of_a_mix_in_another_process_is_the_same(sets: tuple[ShardIndex, ShardIndex]) -> None:
    index = MixedIndex(sets, united_fields(sets))
    copy: MixedIndex = pickle.loads(pickle.dumps(index))  # noqa: S301  # made here
    assert copy.header == index.header
    assert copy.samples(4).labels["mood"].tolist() == index.samples(4).labels["mood"].tolist()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            Field(kind="category", classes=("calm", "sad")),
            r"label 'mood' is one of calm, sad in .*/b and one of calm, glad in .*/a: build one",
        ),
        (Field(kind="number"), "label 'mood' is a number without unit in .*/b and one of calm, glad"),
    ],
)
def test_labels_that_do_not_fit_together_are_refused(tmp_path: Path, field: Field, message: str) -> None:
    first = field_set(tmp_path, "a", Field(kind="category", classes=("calm", "glad")))
    sets = [first, field_set(tmp_path, "b", field)]
    with pytest.raises(UserError, match=message):
        united_fields(sets)
    with pytest.raises(UserError, match="label 'mood'"):
        united_fields(sets[::-1])
    assert united_fields(sets, only=["age"]) == {}


def test_numbers_of_other_units_are_refused(tmp_path: Path) -> None:
    sets = [field_set(tmp_path, unit, Field(kind="number", unit=unit)) for unit in ("degrees", "radians")]
    with pytest.raises(UserError, match=r"a number of radians in .* and a number of degrees"):
        united_fields(sets)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mixed_stream_gives_what_is_planned_of_both_sets_in_the_ratio(
    sets: tuple[ShardIndex, ShardIndex], num_workers: int
) -> None:
    config, selection = mixed(sets, 0.5)
    plan = plan_of(selection)
    assert (plan.num_draws, plan.leftover) == (100 + 50, 6)
    with Stream(
        selection.index, plan, Resize(), config.model_copy(update={"num_workers": num_workers}), epochs=2
    ) as stream:
        batches = [kept(batch) for batch in stream]
    for batch in batches:
        ids = batch.sample_ids.numpy()
        np.testing.assert_array_equal(ids, plan.epoch(batch.epoch).batch_ids(batch.step))
        own = np.where(ids < 100, ids, ids - 100)
        shift = Resize().draw(batch.epoch, batch.positions.numpy())[:, 0]
        expected = np.empty((32, 32, 3), dtype=np.uint8)
        for row in range(len(own)):
            Resize().picture(jpeg(int(own[row])), shift[row : row + 1], expected)
            np.testing.assert_array_equal(batch.images[row].numpy(), expected)
        age = np.where(ids < 100, np.nan, own + shift).astype(np.float32)
        np.testing.assert_array_equal(batch.labels["age"].numpy(), age)
        np.testing.assert_array_equal(batch.labels["sex"].numpy(), np.where(ids < 100, -1, own % 2))
    for epoch in range(2):
        seen = torch.cat([batch.sample_ids for batch in batches if batch.epoch == epoch]).numpy()
        assert len(seen) == 144
        assert abs((seen >= 100).sum() - 48) <= 1
        assert np.bincount(seen[seen < 100]).max() == 1
        assert set(np.bincount(seen[seen >= 100] - 100, minlength=32)) <= {1, 2}


def test_ranks_read_together_a_mix_and_a_stream_goes_on_from_any_step(sets: tuple[ShardIndex, ShardIndex]) -> None:
    config, selection = mixed(sets, 2.0)
    plan = plan_of(selection)

    def load(rank: int, world_size: int, start: tuple[int, int], steps: int) -> list[Batch]:
        with Stream(selection.index, plan, Resize(), config, rank=rank, world_size=world_size, start=start) as stream:
            return [kept(next(stream)) for _ in range(steps)]

    alone = load(0, 1, (0, 0), plan.steps_per_epoch + 4)
    ranks = [load(rank, 3, (0, 0), 8) for rank in range(3)]
    for step, batch in enumerate(alone[:8]):
        together = torch.cat([rank[step].images for rank in ranks])
        assert torch.equal(together, batch.images)
    assert_same(load(0, 1, (0, 9), 5), alone[9:14])


def test_without_a_ratio_each_sample_of_both_sets_is_drawn_once(sets: tuple[ShardIndex, ShardIndex]) -> None:
    plan = plan_of(mixed(sets, None)[1])
    seen = np.concatenate([plan.epoch(0).batch_ids(step) for step in range(plan.steps_per_epoch)])
    assert (plan.num_draws, len(np.unique(seen)), len(seen)) == (132, 120, 120)
