"""What a trial waits for is told to whoever watches the sweep."""

import threading
from typing import Any

import pytest

from hmtl_dist.data.storage import waits
from hmtl_dist.data.storage.waits import Wait, waiting_for
from hmtl_dist.errors import UserError
from hmtl_dist.train.base import Progress
from hmtl_dist.tune.member import Member
from hmtl_dist.tune.trials import Trial
from tests.tune.spaces import METRIC, recipe


def test_what_a_trial_waits_for_reaches_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = threading.Event()
    told: list[tuple[int, Progress | Wait]] = []

    def push(number: int, line: Progress | Wait) -> None:
        told.append((number, line))
        heard.set()

    def drive(*_: Any, **__: Any) -> None:
        with waiting_for("s3://faces"):
            assert heard.wait(60)
        raise UserError("s3://faces is away")

    monkeypatch.setattr(waits, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(waits, "WORTH_TELLING_SECONDS", 0.0)
    monkeypatch.setattr("hmtl_dist.tune.member.drive", drive)
    member = Member(push)
    member.start(Trial(sweep="sweep", number=3, seeds=(0,), recipe=recipe(), settings=(), metrics=(METRIC,)), {})
    assert (member.next().error, member.end()) == ("s3://faces is away", True)
    number, wait = told[0]
    assert isinstance(wait, Wait)
    assert (number, wait.what) == (3, "s3://faces")
