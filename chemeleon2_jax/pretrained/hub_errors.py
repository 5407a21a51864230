"""Why the hub did not give a file, in the user's terms."""

from __future__ import annotations

import errno

from chemeleon2_jax.pretrained.hub_records import Published

_TOKEN_HINT = "it needs a token that may read it (set HF_TOKEN, or run `hf auth login`)"


def explain(error: BaseException, known: Published) -> str:
    """Return the reason behind an error of huggingface_hub or of the HTTP library below it."""
    from huggingface_hub import constants, errors

    place = f"{known.repository} at revision {known.revision!r}"
    match error:
        case errors.OfflineModeIsEnabled():
            return f"HF_HUB_OFFLINE is set, and the file is not in {constants.HF_HUB_CACHE}"
        case errors.LocalEntryNotFoundError() | ValueError() if error.__cause__ is not None:
            return explain(error.__cause__, known)
        case errors.FileMetadataError() | ValueError():
            return str(error)
        case errors.RevisionNotFoundError():
            return f"the repository {known.repository} has no revision {known.revision!r} any more"
        case errors.EntryNotFoundError():
            return f"{place} has no file {known.path}: it was renamed or removed"
        case errors.GatedRepoError():
            return f"{known.repository} asks for your consent on its page, and {_TOKEN_HINT}"
        case errors.RepositoryNotFoundError():
            return f"the hub shows no repository {known.repository}: it is gone, or {_TOKEN_HINT}"
        case errors.HfHubHTTPError():
            return _explain_status(error.response.status_code, place)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no room for it in {constants.HF_HUB_CACHE}; make room, or set HF_HOME"
        case PermissionError():
            return f"{constants.HF_HUB_CACHE} cannot be written ({error}); set HF_HOME"
    reason = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"
    if "Timeout" in type(error).__name__:
        return f"the server is too slow ({reason}); HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer"
    return f"no connection, or it broke off ({reason}); try again where the network is good"


def _explain_status(status: int, place: str) -> str:
    if status in (401, 403):
        return f"access is refused (HTTP {status}): {_TOKEN_HINT}"
    if status == 404:
        return f"there is no such file in {place}, or no such repository (HTTP 404)"
    if status == 429 or status >= 500:
        return f"the server is busy or out of order (HTTP {status}); try again later"
    return f"HTTP {status}"
