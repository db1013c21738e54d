"""`prepare.py --fetch` against servers that send what they should not: nothing of it is kept."""

import http.server
import io
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import numpy as np
import pytest

from benchmarks import download
from testbed.errors import RequestError


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


GOOD = npz(a=np.arange(1000.0))
LENGTH = {"Content-Length": str(len(GOOD))}
# What is asked for -> the status, headers and content that are sent.
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "good": (200, LENGTH, GOOD),
    "unsaid": (200, {}, GOOD),
    "half": (200, LENGTH, GOOD[: len(GOOD) // 2]),
    "half, unsaid": (200, {}, GOOD[: len(GOOD) // 2]),
    "half a chunk": (200, {"Transfer-Encoding": "chunked"}, b"fff\r\n" + GOOD[:100]),
    "login": (200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>Log in</title>"),
    "empty": (200, {"Content-Length": "0"}, b""),
    "odd length": (200, {"Content-Length": "abc"}, GOOD),
    "negative": (200, {"Content-Length": "-1"}, GOOD),
    "endless length": (200, {"Content-Length": "9" * 30}, GOOD),
    "said to be large": (200, {"Content-Length": str(2**40)}, GOOD),
    "large": (200, {}, GOOD + bytes(2**21)),
    "objects": (200, {}, npz(a=np.array([{}], dtype=object))),
    "pickle": (200, {}, b"\x80\x04]\x94."),
    "missing": (404, {}, b"\x1b[31mno\nsuch\nthing"),
    "busy": (503, {}, b""),
    "circle": (302, {"Location": "/circle"}, b""),
    "elsewhere": (302, {"Location": "file:///etc/passwd"}, b""),
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, content = ANSWERS[self.path[1:].replace("%20", " ")]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://localhost:{running.server_port}/"
        running.shutdown()


def check(folder: Path) -> None:
    """Stands for loading a teacher."""
    (path,) = folder.iterdir()
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            arrays["a"]
    except Exception as error:
        raise RequestError("not a checkpoint") from error


def fetch(address: str, path: Path) -> None:
    download.fetch(address.replace(" ", "%20"), path, check, largest=2**20)


@pytest.mark.parametrize("name", ["good", "unsaid"])
def test_a_whole_file_is_kept(server, tmp_path, name):
    path = tmp_path / "new" / "a.npz"
    fetch(server + name, path)
    assert path.read_bytes() == GOOD
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", [name for name in ANSWERS if name not in ("good", "unsaid")])
def test_nothing_else_is_kept_and_it_can_be_fetched_again(server, tmp_path, name):
    path = tmp_path / "a.npz"
    path.write_bytes(b"what was there")
    with pytest.raises(RequestError, match=r"--fetch http://localhost.*; try again") as caught:
        fetch(server + name, path)
    assert str(caught.value).isprintable()
    assert "allow_pickle" not in str(caught.value)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]
    fetch(server + "good", path)
    assert path.read_bytes() == GOOD


def test_where_nothing_listens_it_is_one_error(tmp_path):
    with pytest.raises(RequestError, match="refused"):
        fetch("http://localhost:1/a.npz", tmp_path / "a.npz")


@pytest.mark.parametrize("to", ["http://a/b", "ftp://a/b", "file:///etc/passwd"])
def test_no_redirection_leads_away_from_https(to):
    asked = urllib.request.Request("https://a/b")
    with pytest.raises(urllib.error.URLError, match="redirects from https"):
        download.StaysSecure().redirect_request(asked, io.BytesIO(), 302, "", Message(), to)
    safe = download.StaysSecure().redirect_request(
        asked, io.BytesIO(), 302, "", Message(), "https://c/d"
    )
    assert safe is not None
