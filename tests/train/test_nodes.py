"""Rows of several machines that come together in one sum."""

from pathlib import Path

import pytest

from hmtl_dist.train.base import RankContext, RunContext
from hmtl_dist.train.nodes import METRICS, MOST, Nodes


def nodes(node: int, of: int, local_rank: int = 0) -> Nodes:
    return Nodes(
        RankContext(
            rank=node,
            world_size=2 * of,
            local_rank=local_rank,
            device="cpu",
            scratch=Path(),
            run=RunContext(""),
            node=node,
            nodes=of,
        )
    )


def test_each_other_machine_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([[10.0, 20.0, 0.0], [30.0, 40.0, 0.0]])

    def usage(has_gpus: bool) -> list[float]:
        assert not has_gpus
        return next(used)

    monkeypatch.setattr("hmtl_dist.train.nodes._usage", usage)
    ranks = [nodes(node, 3, local_rank) for node in range(3) for local_rank in range(2)]
    total = [sum(column) for column in zip(*(rank.look() for rank in ranks), strict=True)]

    assert ranks[0].named(total) == {
        "system/node-1/cpu_utilization_percentage": 10.0,
        "system/node-1/system_memory_usage_percentage": 20.0,
        "system/node-2/cpu_utilization_percentage": 30.0,
        "system/node-2/system_memory_usage_percentage": 40.0,
    }


def test_one_machine_tells_nothing() -> None:
    alone = nodes(0, 1)
    assert (alone.look(), alone.named([])) == ([], {})


def test_machine_is_really_looked_at() -> None:
    row = nodes(1, 2).look()
    assert 0 < row[1] < 100
    assert 0 <= row[0] <= 100


def test_number_of_machines_told_is_bounded() -> None:
    far = nodes(MOST + 5, MOST + 10)
    assert far.look() == [0.0] * (len(METRICS) * (MOST - 1))
