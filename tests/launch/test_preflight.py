"""What a driver looks at before workers are started, where it can read the data and where only they can."""

from pathlib import Path
from typing import Any

import pytest

from hmtl_dist.data.storage import open_storage
from hmtl_dist.errors import UserError
from hmtl_dist.launch import preflight
from hmtl_dist.launch.preflight import check, check_parts
from hmtl_dist.run_config import RunConfig
from tests.e2e import drawn
from tests.servers import S3Server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drawn.draw(str(tmp_path_factory.mktemp("drawn") / "set"))


def config(url: str, **sections: Any) -> RunConfig:
    return drawn.config("run", url, **{"launch": {"kind": "ray", "num_workers": 2}} | sections)


@pytest.fixture
def on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")


def test_what_fits_is_let_through_and_its_tasks_are_told(url: str) -> None:
    assert [task.name for task in check_parts(config(url))] == ["expression", "age", "pose", "puzzling", "inpainting"]


@pytest.mark.usefixtures("on_a_cluster")
def test_data_that_the_machines_of_a_cluster_alone_can_read_are_left_to_them(url: str) -> None:
    check(config("/only/there"))
    with pytest.raises(
        UserError, match=r"^model\.backbone: timm's 'vit_tiny_patch16_224' cannot read pictures of 32 x 32 pixels"
    ):
        check(config("/only/there", model={"backbone": "vit_tiny_patch16_224"}))
    with pytest.raises(UserError, match=r"^tasks\.mood\.label: 'mood' is not one of expression, gender"):
        check(config(url, tasks={"mood": {"type": "classification"}}))


@pytest.mark.usefixtures("on_a_cluster")
def test_data_that_are_not_in_s3_are_there_for_no_machine(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_env.bucket()
    with pytest.raises(UserError, match="no data set at "):
        check(config(f"{bucket}/set"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")  # this machine's credentials need not be theirs
    check(config(f"{bucket}/set"))


@pytest.mark.parametrize(("few", "reads_labels"), [(10, False), (1000, True)])
def test_labels_are_read_for_a_choice_among_few_samples_alone(
    url: str, few: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, reads_labels: bool
) -> None:
    monkeypatch.setattr(preflight, "FEW_SAMPLES", few)
    copy = open_storage(str(tmp_path))
    whole = open_storage(url)
    for info in whole.list():
        if "-" not in Path(info.key).name:  # neither shards nor their side tables
            copy.write(info.key, whole.read(info.key))
    folded = config(str(tmp_path), data={"folds": 3, "fold": 1}, train={"monitor": "eval/expression/accuracy"})
    if reads_labels:
        with pytest.raises(UserError, match="does not exist"):
            check_parts(folded)
    else:
        check_parts(folded)


def test_a_fold_smaller_than_a_batch_is_told(url: str) -> None:
    with pytest.raises(UserError, match=r"^data\.batch_size=64 is larger than the chosen part of the data set"):
        check_parts(config(url, data={"folds": 2, "fold": 0, "batch_size": 64}))
