"""Where studies lie: a folder, or a URI of an object store, which holds no credentials."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tunelab.credentials import hide
from tunelab.errors import InputError

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?://|:)")
_SLIP = re.compile(r"(abfss?|adl|az|file|gcs|gs|hdfs|local|oci|oss|s3a?|sftp|smb|ssh|wasbs?|webhdfs):", re.IGNORECASE)
"""What nobody calls a folder: a URI without its slashes, or one that was taken for a path, which leaves it one."""
_HERE = ("file", "local")
_NO_STORE = {
    "http": "it can only be read",
    "https": "it can only be read",
    "data": "it can only be read",
    "memory": "it is gone when the process ends",
}
_ADVICE = "give those in the environment (such as AWS_ACCESS_KEY_ID) or in the store's own file (such as ~/.aws)"
_NAME_AND_HOST = ("abfs", "abfss", "wasb", "wasbs", "sftp", "ssh", "smb", "hdfs", "webhdfs")
"""Where what stands before an @ is a container or a user."""


def is_uri(text: str) -> bool:
    """True for what names a store and not a path, such as `s3://bucket/prefix`."""
    return _URI.match(text) is not None


def parse(text: str, what: str = "--storage") -> Path | str:
    """A folder, of a path or a URI of this machine's files; else the URI of a store, without a slash at its end.

    Args:
        text: what was given.
        what: names it in errors.

    Raises:
        InputError: it holds credentials, or is no URI of a store, also where it was to be one; no credential is in
            the message.
    """
    if not is_uri(text):
        if slip := _SLIP.match(text):
            raise InputError(f"{what} {slip[0]}... is no URI, which has //, such as {slip[0]}//BUCKET/PREFIX")
        return Path(text).expanduser()
    try:
        parts = urlsplit(text)
        named = unquote(parts.netloc)
    except ValueError:
        raise InputError(f"{what} {text.partition('://')[0]}://*** is no URI") from None
    scheme = parts.scheme.lower()
    user, _, host = named.rpartition("@")
    if ":" in user or (user and scheme not in _NAME_AND_HOST) or not _is_port(host):
        raise InputError(f"{what} {scheme}://*** holds credentials, which lists of processes show; {_ADVICE}")
    if parts.query or parts.fragment:
        shown = hide(text.partition("?")[0].partition("#")[0])
        more = f"; credentials are no part of it: {_ADVICE}" if "=" in text else ""
        raise InputError(f"{what} {shown}... must end with its path, without ? and #{more}")
    shown = hide(text)
    if "::" in text:
        raise InputError(f"{what} {shown} must name one store, without ::")
    if scheme in _HERE:
        return Path(unquote(text.partition("://")[2])).expanduser()
    if scheme in _NO_STORE:
        raise InputError(f"{what} {shown} is no place for a study: {_NO_STORE[scheme]}; give s3://BUCKET/PREFIX, say")
    path = parts.path.strip("/")
    wrong = not named or any(part in ("", ".", "..") for part in path.split("/")[bool(not path) :])
    if wrong or not text.isprintable():
        raise InputError(f"{what} {shown} must be a URI such as s3://BUCKET/PREFIX, without empty parts, . and ..")
    return f"{scheme}://{parts.netloc}/{path}".rstrip("/")


def folder(given: str | Path, what: str) -> Path:
    """A folder (or file) of this machine, of a path or a URI of this machine's files.

    Args:
        given: what was given.
        what: names it in errors.

    Raises:
        InputError: it names a store; no credential is in the message.
    """
    found = parse(str(given), what)
    if isinstance(found, Path):
        return found
    raise InputError(
        f"{what} {found} is no folder of this machine; --storage has a study mirrored to a store, and `tunelab resume` "
        "or `tunelab best --retrain` with its URI brings it here"
    )


def _is_port(host: str) -> bool:
    """True for a host with or without the number of a port: anything else after a colon is a password."""
    _, colon, port = host.rpartition(":")
    return not colon or port.isdecimal()


def name_of(location: str) -> str:
    """The last part of a store's URI: the name of a study."""
    return location.rpartition("/")[2]
