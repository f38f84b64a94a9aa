"""The server of a report: what it answers to whom."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path

import pytest

from tcompile.api.view import server_of


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("127.0.0.1", 200),  # on port 80 a browser leaves it out
        ("localhost", 200),
        ("a.page.of.another", 403),
        ("127.0.0.1.another:80", 403),
        ("[::1]", 403),
        ("", 403),
    ],
)
def test_hosts_with_and_without_a_port(host: str, status: int, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>a page", encoding="utf-8")
    with server_of(page, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            asked = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
            asked.request("GET", "/", headers={"Host": host})
            assert asked.getresponse().status == status
            asked.close()
        finally:
            server.shutdown()
            thread.join()
