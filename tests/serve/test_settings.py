"""What a server is told, and how often a client may come."""

import socket
from pathlib import Path

import pytest

from hmtl_dist.config.addresses import is_loopback
from hmtl_dist.errors import UserError
from hmtl_dist.serve.answers import About
from hmtl_dist.serve.app import serve_model
from hmtl_dist.serve.rate import RateLimit
from hmtl_dist.serve.settings import Limits, Settings

ABOUT = About(model="none", heads={}, image_size=1, crop=1, explains=False, max_bytes=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(num_replicas=0), "--num-replicas: given 0, allowed 1 or more"),
        (Settings(batch_size=0), "--batch-size: given 0"),
        (Settings(batch_wait_ms=-1), "--batch-wait-ms: given -1, allowed 0 or more"),
        (Settings(max_queued=-1), "--max-queued: given -1"),
        (Settings(port=65536), "--port: given 65536, allowed 0 to 65535"),
        (Settings(limits=Limits(max_bytes=0)), "--max-bytes: given 0"),
        (Settings(limits=Limits(read_seconds=0)), "--read-timeout: given 0, allowed more than 0 seconds"),
        (Settings(limits=Limits(max_requests_per_second=-2)), "--max-requests-per-second: given -2"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_option(settings: Settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings.check()


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen at 127\.0\.0\.1:{port} \(.*\); give --port or --host"):
            serve_model(tmp_path, ABOUT, Settings(port=port), lambda address: None, lambda: None)


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("192.0.2.7", False), ("::", False)]
)
def test_an_address_that_others_reach_is_known(host: str, *, alone: bool) -> None:
    assert is_loopback(host) is alone


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_client_may_come_so_often_in_the_long_run_and_a_seconds_worth_at_once() -> None:
    clock = Clock()
    limit = RateLimit(5, clock)
    passed = 0
    for tick in range(100):  # ten seconds of ten requests a second
        clock.now = tick / 10
        passed += limit.wait("one") == 0
    assert passed == pytest.approx(5 * 10 + 5, abs=1)


def test_a_rate_below_one_a_second_says_how_long_to_wait() -> None:
    clock = Clock()
    limit = RateLimit(0.25, clock)
    assert limit.wait("one") == 0
    assert limit.wait("one") == 4
    assert limit.wait("other") == 0
    clock.now = 4.0
    assert limit.wait("one") == 0


def test_no_rate_lets_everybody_pass() -> None:
    limit = RateLimit(0)
    assert not any(limit.wait("one") for _ in range(1000))
