"""Servers of this machine are reached without a proxy."""

import pytest

from hmtl_dist.config.addresses import ask_no_proxy_here

HERE = "localhost,127.0.0.1,::1"


@pytest.mark.parametrize("proxy", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("given", "then"),
    [
        ({}, HERE),
        ({"NO_PROXY": "corp.example, 10.0.0.1"}, f"corp.example,10.0.0.1,{HERE}"),
        ({"no_proxy": "127.0.0.1", "NO_PROXY": "other"}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_a_proxy_is_not_asked_for_this_machine(proxy: str, given: dict[str, str], then: str) -> None:
    environment = {proxy: "http://proxy.example:3128", **given}
    ask_no_proxy_here(environment)
    assert (environment["no_proxy"], environment["NO_PROXY"]) == (then, then)


@pytest.mark.parametrize("given", [{}, {"http_proxy": ""}, {"NO_PROXY": "corp.example"}])
def test_without_a_proxy_nothing_is_set(given: dict[str, str]) -> None:
    environment = dict(given)
    ask_no_proxy_here(environment)
    assert environment == given
