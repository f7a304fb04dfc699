"""The network of a second machine, which the tests of clusters rely on."""

import http.server
import subprocess
import sys
import threading

import pytest

from tests.e2e.network import own_network


def test_other_end_reaches_what_is_forwarded_and_nothing_else() -> None:
    with own_network() as network:
        if network is None:
            pytest.skip("no right to make a network namespace, or no `ip`")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]

        def get(address: str) -> int:
            program = f"import urllib.request as r; assert r.urlopen('http://{address}/', timeout=10).status == 200"
            command = network.inside([sys.executable, "-c", program])
            return subprocess.run(command, capture_output=True, check=False).returncode

        try:
            assert get(f"127.0.0.1:{port}") != 0
            assert get(network.forward(port)) == 0
        finally:
            server.shutdown()
            server.server_close()
    assert network.name not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
