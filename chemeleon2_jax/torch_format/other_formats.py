"""Kinds of files that are no checkpoints of PyTorch, told by their first bytes."""

from __future__ import annotations

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SAVE_AGAIN = "load it with PyTorch and save it again: torch.save(torch.load(old), new)"

_FIRST_BYTES = (
    (_LEGACY, f"a file of PyTorch before 1.6, or saved in that format; {_SAVE_AGAIN}"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; run `git lfs pull`"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, not one of torch.save"),
    (b"\x93NUMPY", "an array of numpy (.npy), not a file of torch.save"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (b"PK\x05\x06", "an empty zip archive"),
)


def describe_other(head: bytes) -> str:
    """Return the kind of a file that begins with `head`, and what to do."""
    if not head:
        return "the file is empty; get it again"
    for first, what in _FIRST_BYTES:
        if head.startswith(first):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "a web page, not a checkpoint: look at it in a browser, it may say what went wrong"
    if text.startswith((b"{", b"[")):
        return "JSON, not a checkpoint: it may say what went wrong with a download"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file, which holds no hyper-parameters; name the .ckpt it came from"
    if head[257:262] == b"ustar":
        return f"a tar archive; unpack it, or, where PyTorch wrote it, {_SAVE_AGAIN}"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a plain pickle, not a file of torch.save"
    return "not a file of torch.save: it does not begin as a zip archive does"
