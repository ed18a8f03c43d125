"""One place in an object store: objects by their names below it. Errors are one line without credentials."""

from __future__ import annotations

import contextlib
import datetime
import functools
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
_LONGEST = 300.0  # seconds that any request may take, of a client without limits of its own, say (our choice)
_WRITE = 60.0  # seconds that something small may take to be written (our choice)
_SLOWEST = 16 * 2**10  # bytes a second of a line that is slow, but not taken for dead (our choice)
_SLACK = 1.2  # times that limit, until a request that should have been broken off is left alone (our choice)
_S3 = ("s3", "s3a")
_PACKAGES = {
    **dict.fromkeys(_S3, "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "oss": "ossfs",
    "oci": "ocifs",
    "smb": "smbprotocol",
    "hdfs": "pyarrow",
}
_OPTIONS: dict[str, dict[str, Any]] = {
    # So one request takes some 40 s at most where nobody answers; whoever asks tries again, and says so.
    name: {"config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"total_max_attempts": 2}}}
    for name in _S3
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

    def __init__(self, location: str, system: Any, root: str, may_write: Callable[[], None] = lambda: None) -> None:
        self.location = location
        self._system = system
        self._root = root.rstrip("/")
        self._may_write = may_write

    @classmethod
    def open(cls, location: str) -> Store:
        """The place with this URI, which `locations.parse` has passed; nothing is asked of the store yet.

        Raises:
            InputError: no fsspec package for it is installed, or nobody knows its scheme.
        """
        import fsspec
        from fsspec.core import url_to_fs

        scheme = location.partition("://")[0]
        if scheme not in fsspec.available_protocols():
            raise InputError(f"the store {location} is of no known kind; there are {'://, '.join(_PACKAGES)}://")
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
        if scheme in _S3:
            system.retries = 1  # of s3fs itself, each with those of botocore: 5 by default
        return cls(location, system, root)

    def child(self, name: str) -> Store:
        """The place `name` below this one."""
        return Store(f"{self.location}/{name}", self._system, f"{self._root}/{name}", self._may_write)

    def guarded(self, may_write: Callable[[], None]) -> Store:
        """This place; `may_write` is called before anything is written or removed there, and may raise."""
        return Store(self.location, self._system, self._root, may_write)

    def unguarded(self) -> Store:
        """This place, for what is to be removed whoever writes there."""
        return Store(self.location, self._system, self._root)

    def require_mine(self) -> None:
        """Passes if something may be written now; what `guarded` was given may raise."""
        self._may_write()

    def read(self, name: str, most: int = MOST_JSON) -> bytes | None:
        """The content of an object; None if there is none. One of more than `most` bytes is an error."""

        def fetch() -> bytes | None:
            try:
                content: bytes = self._system.cat_file(self._path(name), start=0, end=most + 1)
            except FileNotFoundError:
                return None
            return content

        found = self._ask(fetch)
        if found is not None and len(found) > most:
            raise StoreError(f"{self.location}/{name} is larger than {most:,} bytes")
        return found

    def write(self, name: str, content: bytes) -> None:
        """Makes `content` the object of this name."""
        self._may_write()
        # A client waits without limit to be asked for the content: that is broken off, not left alone, where it can be.
        limit = _limit(len(content))
        more = {"timeout": limit} if getattr(self._system, "async_impl", False) else {}
        self._ask(lambda: self._system.pipe_file(self._path(name), content, **more), _SLACK * limit)

    def upload(self, name: str, file: BinaryIO, size: int) -> None:
        """Makes the next `size` bytes of `file` the object of this name; they are never held all at once."""
        if size <= _BLOCK:
            self.write(name, file.read(size))
            return
        self._may_write()
        target = self._ask(lambda: self._system.open(self._path(name), "wb", block_size=_BLOCK, autocommit=False))
        try:
            left = size
            while left:
                part = file.read(min(left, _BLOCK))
                if not part:
                    raise StoreError(f"{self.location}/{name}: the file has become shorter while it was copied")
                self._ask(functools.partial(target.write, part), _limit(_BLOCK))
                left -= len(part)
            self._ask(target.close, _limit(_BLOCK))
            self._may_write()
            self._ask(target.commit)
        except BaseException:  # parts that nobody puts together stay for good, and cost money
            for undo in (target.close, target.discard):
                with contextlib.suppress(StoreError):
                    self._ask(undo)
            raise

    def download(self, name: str, target: BinaryIO) -> None:
        """Writes an object's content to `target`."""
        source = self._ask(lambda: self._system.open(self._path(name), "rb", block_size=_BLOCK))
        with contextlib.closing(source):
            while part := self._ask(lambda: source.read(_BLOCK)):
                target.write(part)

    def names(self) -> dict[str, int]:
        """All objects below this place, at any depth, with their sizes in bytes."""

        def find() -> dict[str, Any]:
            self._system.invalidate_cache()
            found: dict[str, Any] = self._system.find(self._root, detail=True)
            return found

        start = len(self._root.lstrip("/")) + 1
        return {path.lstrip("/")[start:]: int(info["size"]) for path, info in self._ask(find).items()}

    def folders(self) -> list[str]:
        """The names directly below this place that hold objects."""

        def find() -> list[dict[str, Any]]:
            self._system.invalidate_cache()
            try:
                found: list[dict[str, Any]] = self._system.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
            return found

        return sorted(
            info["name"].rstrip("/").rpartition("/")[2] for info in self._ask(find) if info["type"] == "directory"
        )

    def remove(self, name: str) -> None:
        """Removes an object; one that is gone already is no error."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._path(name))

        self._may_write()
        self._ask(remove)

    def written(self, name: str) -> datetime.datetime | None:
        """When an object was written by the clock of the store; None if it does not say, or there is no such object."""

        def look() -> object:
            self._system.invalidate_cache()
            try:
                return self._system.modified(self._path(name))
            except (NotImplementedError, FileNotFoundError, KeyError):
                return None

        found = self._ask(look)
        if not isinstance(found, datetime.datetime):
            return None
        return found.replace(tzinfo=found.tzinfo or datetime.timezone.utc)

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

    def _ask(self, work: Callable[[], Given], seconds: float | None = None) -> Given:
        try:
            return within(_LONGEST if seconds is None else seconds, work)
        except Exception as error:
            raise StoreError(f"{self.location}: {reason(error)}") from None


def _limit(size: int) -> float:
    """Seconds that so many bytes may take to be written."""
    return _WRITE + size / _SLOWEST


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
