"""One place in an object store: objects by their names below it. Errors are one line without credentials."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from tunelab.credentials import hide
from tunelab.errors import InputError, TunelabError

CHECK_SECONDS = 30.0
"""So long may a store take to be written, read and cleaned for a try (our choice)."""
MOST_JSON = 32 * 2**20
_BLOCK = 8 * 2**20  # bytes of a part of a large upload; S3 wants 5 MiB at least
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "oss": "ossfs",
    "oci": "ocifs",
    "smb": "smbprotocol",
    "hdfs": "pyarrow",
}
_OPTIONS: dict[str, dict[str, Any]] = {
    # s3fs waits for a minute and tries again and again; here whoever asks tries again, and says so.
    name: {"config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}}}
    for name in ("s3", "s3a")
} | {name: {"auto_mkdir": True} for name in ("file", "local")}
_MEANINGS = {
    "NoCredentialsError": "there are no credentials; give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the"
    " environment or keys in ~/.aws",
    "PartialCredentialsError": "the credentials are not complete",
    "EndpointConnectionError": "it cannot be reached",
    "ConnectTimeoutError": "it does not answer",
    "ReadTimeoutError": "it does not answer",
    "ClientConnectorError": "it cannot be reached",
    "TimeoutError": "it does not answer",
    "FSTimeoutError": "it does not answer",
}
Given = TypeVar("Given")


class StoreError(TunelabError):
    """A store cannot be reached, or refuses what it is asked; the message names it and the reason, no credentials."""


class Store:
    """A place in an object store. Objects are written whole or not at all. Made by `Store.open`.

    All methods raise `StoreError` if the store does not do what it is asked.
    """

    def __init__(self, location: str, system: Any, root: str) -> None:
        self.location = location
        self._system = system
        self._root = root.rstrip("/")

    @classmethod
    def open(cls, location: str) -> Store:
        """The place with this URI, which `locations.parse` has passed; nothing is asked of the store yet.

        Raises:
            InputError: no fsspec package for it is installed.
        """
        import fsspec
        from fsspec.core import url_to_fs

        scheme = location.partition("://")[0]
        try:
            fsspec.get_filesystem_class(scheme)
            system, root = url_to_fs(
                location, skip_instance_cache=True, use_listings_cache=False, **_OPTIONS.get(scheme, {})
            )
        except ImportError as error:
            package = _PACKAGES.get(scheme)
            needs = f"`pip install {package}`" if package else _first_line(error)
            raise InputError(f"{scheme}:// needs a package that is not installed: {needs}") from None
        except Exception as error:
            raise InputError(f"the store {location} cannot be used: {reason(error)}") from None
        return cls(location, system, root)

    def child(self, name: str) -> Store:
        """The place `name` below this one."""
        return Store(f"{self.location}/{name}", self._system, f"{self._root}/{name}")

    def read(self, name: str, most: int = MOST_JSON) -> bytes | None:
        """The content of an object; None if there is none. One of more than `most` bytes is an error."""
        with self._asked():
            try:
                content: bytes = self._system.cat_file(self._path(name), start=0, end=most + 1)
            except FileNotFoundError:
                return None
        if len(content) > most:
            raise StoreError(f"{self.location}/{name} is larger than {most:,} bytes")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Makes `content` the object of this name."""
        with self._asked():
            self._system.pipe_file(self._path(name), content)

    def upload(self, name: str, file: BinaryIO, size: int) -> None:
        """Makes the next `size` bytes of `file` the object of this name; they are never held all at once."""
        if size <= _BLOCK:
            self.write(name, file.read(size))
            return
        with self._asked(), self._system.open(self._path(name), "wb", block_size=_BLOCK) as target:
            left = size
            while left:
                part = file.read(min(left, _BLOCK))
                if not part:
                    raise StoreError(f"{self.location}/{name}: the file has become shorter while it was copied")
                target.write(part)
                left -= len(part)

    def download(self, name: str, target: BinaryIO) -> None:
        """Writes an object's content to `target`."""
        with self._asked(), self._system.open(self._path(name), "rb", block_size=_BLOCK) as source:
            shutil.copyfileobj(source, target, _BLOCK)

    def names(self) -> dict[str, int]:
        """All objects below this place, at any depth, with their sizes in bytes."""
        with self._asked():
            self._system.invalidate_cache()
            found = self._system.find(self._root, detail=True)
        start = len(self._root.lstrip("/")) + 1
        return {path.lstrip("/")[start:]: int(info["size"]) for path, info in found.items()}

    def folders(self) -> list[str]:
        """The names directly below this place that hold objects."""
        with self._asked():
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
        return sorted(info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory")

    def remove(self, name: str) -> None:
        """Removes an object; one that is gone already is no error."""
        with self._asked(), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def written(self, name: str) -> datetime.datetime | None:
        """When an object was written by the clock of the store; None if it does not say, or there is no such object."""
        with self._asked():
            self._system.invalidate_cache()
            try:
                found = self._system.modified(self._path(name))
            except (NotImplementedError, FileNotFoundError, KeyError):
                return None
        known = isinstance(found, datetime.datetime)
        return found.replace(tzinfo=found.tzinfo or datetime.timezone.utc) if known else None

    def check(self, seconds: float = CHECK_SECONDS) -> None:
        """Writes a token, reads it and removes it.

        Raises:
            InputError: that does not work, or takes longer than `seconds`.
        """
        token, name = uuid.uuid4().hex.encode(), f".tunelab-check-{uuid.uuid4().hex[:8]}"
        try:
            within(seconds, lambda: self.write(name, token))
            if within(seconds, lambda: self.read(name)) != token:
                raise StoreError(f"{self.location}: what was written is not what is read")
            within(seconds, lambda: self.remove(name))
        except StoreError as error:
            raise InputError(f"the store {error}; nothing was begun") from None
        except TimeoutError:
            raise InputError(f"the store {self.location} does not answer within {seconds:.0f} s") from None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"{self.location}: {reason(error)}") from None


def within(seconds: float, work: Callable[[], Given]) -> Given:
    """What `work` gives, done in a thread that is left alone if it takes longer.

    Raises:
        TimeoutError: it takes longer.
    """
    results: list[Given] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="store", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def reason(error: BaseException) -> str:
    """Why a store did not do what it was asked, in one line without credentials."""
    named = [type(one).__name__ for one in _causes(error)]
    for name in named:
        if name in _MEANINGS:
            return _MEANINGS[name]
    if isinstance(error, PermissionError):
        return f"access is denied ({_first_line(error)})"
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket or object ({_first_line(error)})"
    return f"{named[0]}: {_first_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return hide(lines[0])[:300] if lines else type(error).__name__
