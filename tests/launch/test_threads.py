import pytest
import torch

from hmtl_dist.launch.threads import num_threads, torch_threads
from tests.launch.drive import config


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (2.5, 2)])
def test_a_rank_computes_with_as_many_threads_as_it_has_whole_cores(cpus: float, threads: int) -> None:
    assert num_threads(config(cpus_per_worker=cpus).launch) == threads


def test_the_thread_count_is_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
