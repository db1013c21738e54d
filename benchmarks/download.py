"""Downloads of checkpoints, which keep what is whole and can be read, and nothing else."""

import http.client
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tqdm import tqdm

from testbed.errors import RequestError, describe

LARGEST = 16 * 2**30  # bytes; the largest public checkpoint has a quarter of that
CHUNK = 2**20
NPZ = b"PK\x03\x04"  # the first bytes of every .npz, which is a zip file


class StaysSecure(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but none from https to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """See urllib.

        Raises:
          URLError: it leads away from https.
        """
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            fp.close()
            raise urllib.error.URLError(f"it redirects from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(address: str, path: Path, check: Callable[[Path], None], largest: int = LARGEST) -> None:
    """Downloads an .npz; until it is whole and checked, `path` stays as it is.

    Args:
      address: of the file.
      path: where it goes.
      check: raises RequestError if the file in a folder, under its own name, cannot be used.
      largest: bytes that are accepted at most.

    Raises:
      RequestError: it cannot be fetched, not be written, or not be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            _download(address, part, largest)
            check(Path(folder))
            part.replace(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        why = str(error) if isinstance(error, RequestError | OSError) else describe(error)
        raise RequestError(f"--fetch {address}: {why}; try again, or fetch it by hand") from error


def _download(address: str, part: Path, largest: int) -> None:
    """Writes what an address sends, and compares it with what it says that it sends."""
    opener = urllib.request.build_opener(StaysSecure)
    with opener.open(address, timeout=60) as answer, part.open("wb") as file:
        said = answer.headers.get("Content-Length")
        size = _size(said)
        if size > largest:
            raise RequestError(
                f"its {size:,} bytes are more than {largest:,}, the most that is accepted"
            )
        written = 0
        with tqdm(total=size or None, desc=part.name, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := answer.read(CHUNK):
                if not written and not chunk.startswith(NPZ):
                    raise RequestError(f"it sends no .npz, but what begins with {chunk[:20]!r}")
                written += file.write(chunk)
                bar.update(len(chunk))
                if written > largest:
                    raise RequestError(
                        f"it sends more than {largest:,} bytes, the most that is accepted"
                    )
    if said is not None and written != size:
        raise RequestError(f"it sent {written:,} of {size:,} bytes")
    if not written:
        raise RequestError("it sends nothing")


def _size(said: str | None) -> int:
    """Bytes, as Content-Length says; 0 if there is none."""
    if said is None:
        return 0
    if not (said.isascii() and said.isdecimal() and len(said) < 20):
        raise RequestError(f"it says that its length is {said!r}")
    return int(said)
