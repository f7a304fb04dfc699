"""What holds for every set of the catalogue."""

from pathlib import Path

import pytest

from hmtl_dist.data.catalog.registry import data_sets, open_data_set
from hmtl_dist.data.dataset.adapter import SampleRef
from hmtl_dist.data.decode import decode
from hmtl_dist.errors import UserError
from tests.data.catalog.fabricate import TREES


def test_every_set_has_a_fabricated_tree() -> None:
    assert set(TREES) == {name for name, one in data_sets().items() if one.source != "none"}


@pytest.mark.parametrize("name", TREES)
def test_a_whole_tree_gives_what_its_entry_promises(tmp_path: Path, name: str) -> None:
    entry = data_sets()[name]
    adapter = open_data_set(name, TREES[name](tmp_path))
    refs = list(adapter.refs())
    assert refs
    assert len({ref.name for ref in refs}) == len(refs)
    assert set(adapter.fields) <= set(entry.labels) or name == "folder"
    assert adapter.group == entry.group
    assert bool(adapter.splits) == (entry.splits == "published") or name == "folder"
    for ref in refs:
        assert isinstance(ref, SampleRef)
        assert set(ref.labels) == set(adapter.fields)
        for label, value in ref.labels.items():
            classes = adapter.fields[label].classes
            assert value is None or (value in classes if classes else isinstance(value, float))
        assert (ref.split in adapter.splits) if adapter.splits else ref.split is None
        assert (ref.group is not None) == (adapter.group is not None)
        assert min(decode(adapter.load(ref)).shape[:2]) >= 48


@pytest.mark.parametrize("name", TREES)
def test_an_empty_folder_is_one_line(tmp_path: Path, name: str) -> None:
    if name == "utkface":
        assert not list(open_data_set(name, tmp_path).refs())
        return
    with pytest.raises(UserError, match=str(tmp_path)):
        open_data_set(name, tmp_path)
    with pytest.raises(UserError):
        open_data_set(name, tmp_path / "nowhere")


def test_an_unknown_set_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="no such set; did you mean 'affectnet'"):
        open_data_set("afectnet", Path())
