"""What is trained and evaluated on: subsets, folds and balance, chosen from the side tables alone."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hmtl_dist.data.config import DataConfig, MixedSet
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.dataset.schema import Field, LabelValue
from hmtl_dist.data.stream.plan import PADDING, Plan
from hmtl_dist.data.stream.selection import Selection, open_evaluation, open_training
from hmtl_dist.errors import UserError
from tests.data.stream.streaming import make_set

CLASSES = ("calm", "glad", "cross", "shy")
FIELDS = {"mood": Field(kind="category", classes=CLASSES), "sex": Field(kind="category", classes=("f", "m"))}
SIZES = [100, 0, 140, 60, 100]
TOTAL = sum(SIZES)


def labels(n: int) -> dict[str, LabelValue]:
    """Of 20: 10 calm, 5 glad, 2 cross, 1 shy, 2 none."""
    mood = "calm" if n % 20 < 10 else "glad" if n % 20 < 15 else "cross" if n % 20 < 17 else "shy"
    return {"mood": None if n % 20 > 17 else mood, "sex": "fm"[n % 3 == 0]}


def person(n: int) -> str:
    """Persons of 1 to 8 samples that lie in several shards; some samples have none."""
    return "" if n % 9 == 0 else f"p{(n * 7 + n * n // 50) % 90}"


def write(folder: Path, *, grouped: bool) -> str:
    pictures = dict.fromkeys(range(TOTAL), b"no picture")
    group = person if grouped else None
    return make_set(str(folder), folder, SIZES, pictures=pictures, fields=FIELDS, labels=labels, group=group).url


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = write(tmp_path_factory.mktemp("grouped"), grouped=True)
    for tar in Path(url).rglob("*.tar"):
        tar.unlink()  # nothing but the index may be read
    return url


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("alone"), grouped=False)


def plan_of(selection: Selection, *, shuffle: bool = True) -> Plan:
    return Plan(
        selection.index.num_samples, batch_size=8, lanes=4, seed=1, shuffle=shuffle, block=16, pools=selection.pools
    )


def drawn(selection: Selection, *, shuffle: bool = True) -> NDArray[np.int64]:
    plan = plan_of(selection, shuffle=shuffle)
    ids = np.concatenate([plan.epoch(0).batch_ids(step) for step in range(plan.steps_per_epoch)])
    return ids[ids != PADDING]


def chosen(selection: Selection) -> NDArray[np.int64]:
    """Ids that may be drawn."""
    assert selection.pools is not None
    assert selection.pools.pool_of is not None
    return np.flatnonzero(selection.pools.pool_of < len(selection.pools.draws))


def moods(ids: NDArray[np.int64]) -> list[int]:
    names = [labels(n)["mood"] for n in ids.tolist()]
    return [names.count(name) for name in CLASSES]


def people(ids: NDArray[np.int64]) -> set[str]:
    return {person(n) for n in ids.tolist()} - {""}


def test_a_subset_has_its_share_of_every_class_and_is_drawn_once_an_epoch(alone: str) -> None:
    config = DataConfig(url=alone, subset=0.2, stratify_by="mood")
    selection = open_training(config)
    ids = chosen(selection)
    assert moods(ids) == [40, 20, 8, 4]
    assert np.array_equal(np.sort(drawn(selection)), ids)
    assert selection.sources[0].samples == TOTAL
    assert selection.sources[0].chosen == selection.sources[0].draws == len(ids) == 80


def test_a_subset_depends_on_its_own_seed_alone(alone: str) -> None:
    def ids(seed: int) -> list[int]:
        return chosen(open_training(DataConfig(url=alone, subset=0.2, subset_seed=seed))).tolist()

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)


def test_a_subset_is_the_same_pictures_however_they_are_sharded(alone: str, tmp_path: Path) -> None:
    pictures = dict.fromkeys(range(TOTAL), b"no picture")
    other = make_set(str(tmp_path), tmp_path, [37] * 10 + [30], pictures=pictures, fields=FIELDS, labels=labels).url
    first, second = (chosen(open_training(DataConfig(url=url, subset=0.3))).tolist() for url in (alone, other))
    assert first == second


def test_a_subset_of_a_set_with_groups_holds_whole_groups(grouped: str) -> None:
    selection = open_training(DataConfig(url=grouped, subset=0.25, stratify_by="mood"))
    ids = chosen(selection)
    assert not people(ids) & people(np.setdiff1d(np.arange(TOTAL), ids))
    assert np.abs(np.array(moods(ids)) - [50, 25, 10, 5]).max() <= 2
    assert abs(len(ids) - 100) <= 3


def test_folds_cover_the_split_once_and_share_no_person(grouped: str) -> None:
    evaluated: list[NDArray[np.int64]] = []
    for fold in range(5):
        config = DataConfig(url=grouped, folds=5, fold=fold, stratify_by="mood")
        trained = chosen(open_training(config))
        held_out = drawn(open_evaluation(config), shuffle=False)
        assert np.array_equal(np.sort(np.concatenate([trained, held_out])), np.arange(TOTAL))
        assert not people(trained) & people(held_out)
        assert np.abs(np.array(moods(held_out)) - [40, 20, 8, 4]).max() <= 2
        evaluated.append(held_out)
    assert np.array_equal(np.sort(np.concatenate(evaluated)), np.arange(TOTAL))


def test_a_subset_is_taken_of_the_folds_that_are_trained_on_and_leaves_the_other_whole(grouped: str) -> None:
    folds = DataConfig(url=grouped, folds=4, fold=2)
    part = folds.model_copy(update={"subset": 0.5})
    held_out = drawn(open_evaluation(part), shuffle=False)
    assert np.array_equal(held_out, drawn(open_evaluation(folds), shuffle=False))
    assert not set(held_out) & set(chosen(open_training(part)))
    assert abs(len(chosen(open_training(part))) - 150) <= 4


def test_balanced_classes_are_drawn_equally_often_and_samples_without_the_label_once(alone: str) -> None:
    config = DataConfig(url=alone, balance="mood")
    selection = open_training(config)
    ids = drawn(selection)
    assert len(ids) == TOTAL
    assert moods(ids) == [90, 90, 90, 90]
    times = np.bincount(ids, minlength=TOTAL)
    for name, (low, high) in {"calm": (0, 1), "glad": (0, 1), "cross": (2, 3), "shy": (4, 5), None: (1, 1)}.items():
        found = times[[labels(n)["mood"] == name for n in range(TOTAL)]]
        assert (found.min(), found.max()) == (low, high)
    assert selection.header.label_counts["mood"] == [90, 90, 90, 90]
    sexes = [labels(n)["sex"] for n in ids.tolist()]
    assert np.abs(np.array(selection.header.label_counts["sex"]) - [sexes.count("f"), sexes.count("m")]).max() <= 8


def test_classes_are_counted_over_what_is_trained_on(alone: str) -> None:
    subset = open_training(DataConfig(url=alone, subset=0.1, stratify_by="mood"))
    assert subset.header.label_counts["mood"] == moods(chosen(subset)) == [20, 10, 4, 2]
    twice = open_training(DataConfig(url=alone, mix=(MixedSet(url=alone, ratio=0.5),)))
    assert twice.header.label_counts["mood"] == [300, 150, 60, 30]
    folds = open_training(DataConfig(url=alone, folds=4, stratify_by="mood"))
    assert folds.header.label_counts["mood"] == [150, 75, 30, 15]


def test_sets_of_a_mix_are_balanced_each_and_keep_their_ratio(alone: str, grouped: str) -> None:
    config = DataConfig(
        url=alone, subset=0.5, stratify_by="mood", balance="mood", mix=(MixedSet(url=grouped, ratio=0.2),)
    )
    selection = open_training(config)
    assert [source.draws for source in selection.sources] == [200, 40]
    ids = drawn(selection)
    assert moods(ids[ids < TOTAL]) == [45, 45, 45, 45]
    assert moods(ids[ids >= TOTAL] - TOTAL) == [9, 9, 9, 9]


def test_a_whole_set_is_not_looked_into(alone: str, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    copy.mkdir()
    for name in ("dataset.json", "train/index.json", "train/shards.npz"):
        source = Path(alone, name)
        if source.exists():
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_bytes(source.read_bytes())
    assert open_training(DataConfig(url=str(copy))).pools is None
    assert open_training(DataConfig(url=str(copy), mix=(MixedSet(url=str(copy)),))).pools is not None
    with pytest.raises(UserError, match="does not exist"):
        open_training(DataConfig(url=str(copy), subset=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 0.5, "stratify_by": "age"}, "data.stratify_by: no category label 'age'; there are mood, sex"),
        ({"balance": "age"}, "data.balance: no category label 'age'; there are mood, sex"),
        ({"subset": 0.0001}, "data.subset=0.0001: "),
        ({"folds": 200}, "data.folds=200: .* has only .* groups in train; set"),
    ],
)
def test_what_cannot_be_chosen_is_refused(grouped: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_training(DataConfig(url=grouped, **options))  # pyright: ignore[reportArgumentType]


def test_an_evaluation_without_folds_takes_the_other_split_whole(alone: str) -> None:
    config = DataConfig(url=alone, eval_split="train", subset=0.1, balance="mood")
    selection = open_evaluation(config)
    assert selection.pools is None
    assert selection.index.header == open_index(alone, "train").header


def test_another_set_is_evaluated_on_with_the_labels_that_are_trained_on(alone: str, tmp_path: Path) -> None:
    pictures = dict.fromkeys(range(30), b"no picture")
    fields = {"mood": Field(kind="category", classes=("shy", "glad")), "wink": Field(kind="number")}
    other = make_set(
        str(tmp_path),
        tmp_path,
        [30],
        pictures=pictures,
        fields=fields,
        labels=lambda n: {"mood": ("shy", "glad")[n % 2], "wink": 1.0},
    ).url
    config = DataConfig(url=alone, eval_url=other, eval_split="train")
    selection = open_evaluation(config, dict(FIELDS))
    table = selection.index.samples(0)
    assert len(table) == 30
    assert set(table.labels) == {"mood", "sex"}
    assert table.labels["mood"].tolist() == [3, 1] * 15
    assert (table.labels["sex"] == -1).all()


def test_another_set_with_unknown_classes_is_refused(alone: str, tmp_path: Path) -> None:
    fields = {"mood": Field(kind="category", classes=("calm", "bored"))}
    other = make_set(
        str(tmp_path),
        tmp_path,
        [4],
        pictures=dict.fromkeys(range(4), b"x"),
        fields=fields,
        labels=lambda n: {"mood": "calm"},
    ).url
    config = DataConfig(url=alone, eval_url=other, eval_split="train")
    with pytest.raises(
        UserError, match="label 'mood' is one of calm, bored there, the model is trained on one of calm,"
    ):
        open_evaluation(config, dict(FIELDS))


def test_folds_are_of_the_set_that_is_trained_on() -> None:
    with pytest.raises(ValueError, match=r"given 5 with data\.eval_url, but a fold is of data\.url"):
        DataConfig(url="a", eval_url="b", folds=5)
