"""One transfer over HTTP: with a progress bar, resumed by range."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

TIMEOUT_S = 30.0


class TransferError(Exception):
    """A file cannot be downloaded; the text is the reason."""


class BrokenTransferError(TransferError):
    """A transfer failed for a reason that a retry may mend."""


def download(url: str, partial: Path, *, name: str, max_bytes: int | None = None) -> None:
    """Download to `partial`, continuing after the bytes that it holds.

    Args:
        url: of the file.
        partial: file that collects the bytes.
        name: for the progress bar.
        max_bytes: largest size of the file; None for no limit.

    Raises:
        TransferError: the server or the file does not exist, or the file is too large.
        BrokenTransferError: the transfer broke off.
        ValueError: `url` is no URL.
        OSError: `partial` cannot be written.
    """
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "chemeleon2_jax"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            start = start if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            _copy(response, partial, start=start, name=name, limit=max_bytes)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all the bytes are there; the checksum tells whether they are right
        kind = BrokenTransferError if error.code >= 500 else TransferError
        raise kind(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise TransferError(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise BrokenTransferError(f"the transfer broke off ({error})") from error


def _copy(
    response: http.client.HTTPResponse,
    partial: Path,
    *,
    start: int,
    name: str,
    limit: int | None,
) -> None:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    bar = tqdm(
        total=total,
        initial=start,
        desc=name,
        unit="B",
        unit_scale=True,
        disable=None,  # a bar on a terminal only
    )
    received = start
    with bar, partial.open("ab" if start else "wb") as stream:
        while block := response.read(1 << 18):
            stream.write(block)
            received += len(block)
            bar.update(len(block))
            if limit is not None and received > limit:
                partial.unlink()
                raise TransferError(f"it has more than {limit} bytes")
    if total is not None and received < total:
        raise BrokenTransferError(f"the transfer broke off after {received} of {total} bytes")
