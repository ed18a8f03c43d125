from __future__ import annotations

import importlib
import io
import sys
import threading
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from tunelab.errors import InputError
from tunelab.stores import store as store_module
from tunelab.stores.store import Store, StoreError, reason, within

if TYPE_CHECKING:
    from tests.conftest import Bucket, Line


def exercise(store: Store) -> None:
    """All that a store is asked; every kind of store must answer alike."""
    store.check()
    assert store.names() == {}
    assert store.folders() == []
    assert store.read("a/none") is None
    assert store.written("a/none") is None
    store.remove("a/none")
    store.write("a/one", b"first")
    store.write("a/one", b"second")
    large = bytes(range(256)) * (9 * 2**12)  # more than a block
    store.child("b").upload("two", io.BytesIO(large), len(large))
    target = io.BytesIO()
    store.download("b/two", target)
    assert target.getvalue() == large
    assert store.read("a/one") == b"second"
    assert store.names() == {"a/one": 6, "b/two": len(large)}
    assert store.child("a").names() == {"one": 6}
    assert store.folders() == ["a", "b"]
    written = store.written("a/one")
    assert written is not None
    assert written.tzinfo is not None
    with pytest.raises(StoreError, match="a/one is larger than 3 bytes"):
        store.read("a/one", 3)
    if not store.location.startswith("memory:"):  # which has an object as soon as it is begun
        with pytest.raises(StoreError, match="has become shorter"):
            store.upload("c", io.BytesIO(large), len(large) + 1)
        assert store.read("c") is None
    with pytest.raises(StoreError, match="no such bucket or object"):
        store.download("a/none", io.BytesIO())
    store.remove("a/one")
    store.remove("b/two")
    assert store.names() == {}


def test_a_folder_is_a_store(store: Store) -> None:
    exercise(store)


def test_memory_is_a_store() -> None:
    exercise(Store.open("memory://test-of-stores/x"))


def test_an_object_store_is_a_store(bucket: Bucket) -> None:
    exercise(Store.open(f"{bucket.uri}/some/where"))
    exercise(Store.open(bucket.uri))


def test_a_bucket_that_is_not_there_is_told(bucket: Bucket) -> None:
    with pytest.raises(
        InputError, match=r"^the store s3://no-such-bucket/x: there is no such bucket.*nothing was begun$"
    ):
        Store.open("s3://no-such-bucket/x").check()


def test_an_address_where_nobody_answers_is_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="it cannot be reached"):
        Store.open(bucket.uri).check()


def test_a_request_that_is_never_answered_is_made_twice_and_told(bucket: Bucket, silent: Line) -> None:
    """By botocore, and not by s3fs again and again. What is to be written is asked for first; that has a limit too."""
    store = Store.open(bucket.uri)
    for ask, times in (
        (lambda: store.read("x"), 2),
        (lambda: store.remove("x"), 2),
        (store.names, 2),
        (lambda: store.write("x", b"1"), 1),
    ):
        silent.requests = 0
        with pytest.raises(StoreError, match=f"^{bucket.uri}: it does not answer$"):
            ask()
        assert silent.requests == times
    with pytest.raises(InputError, match=f"^the store {bucket.uri}: it does not answer; nothing was begun$"):
        store.check()


def test_a_client_without_limits_of_its_own_is_given_up_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(store_module, "_WRITE", 0.05)
    monkeypatch.setattr(store._system, "pipe_file", lambda path, content: answers.wait())
    with pytest.raises(StoreError, match="it does not answer"):
        store.write("a", b"1")
    answers.set()


def test_missing_credentials_are_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match="there are no credentials; give AWS_ACCESS_KEY_ID"):
        Store.open(bucket.uri).check()


def test_a_store_that_never_answers_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(store, "write", lambda name, content: answers.wait())
    with pytest.raises(InputError, match="does not answer within 0 s"):
        store.check(0.05)
    answers.set()


def test_a_store_that_may_be_read_alone_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, content: bytes) -> None:
        raise PermissionError("AccessDenied: secret=hunter2hunter2")

    monkeypatch.setattr(store._system, "pipe_file", refuse)
    with pytest.raises(InputError, match=r"access is denied \(AccessDenied: secret=\*\*\*\); nothing was begun"):
        store.check()


def test_another_content_than_was_written_is_no_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "read", lambda name: b"other")
    with pytest.raises(InputError, match="what was written is not what is read"):
        store.check()


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("fsspec")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(InputError, match=r"^s3:// needs a package that is not installed: `pip install s3fs`$"):
        Store.open("s3://bucket/x")


def test_a_scheme_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match=r"^the store nothing://x/y is of no known kind; there are s3://, .*gs://"):
        Store.open("nothing://x/y")


def test_errors_of_libraries_are_one_line_without_credentials() -> None:
    error = OSError("no\nsecond line")
    assert reason(error) == "OSError: no"
    error.__cause__ = type("EndpointConnectionError", (Exception,), {})("x")
    assert reason(error) == "it cannot be reached"
    assert reason(ValueError("s3://KEY:hunter2hunter2@b")) == "ValueError: s3://***@b"
    assert reason(ValueError()) == "ValueError: ValueError"


def test_what_goes_wrong_in_the_other_thread_is_raised_here() -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        within(5.0, fail)
    assert within(5.0, lambda: 3) == 3


def test_parts_that_cannot_be_put_together_are_removed(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BLOCK", 5 * 2**20)
    store = Store.open(f"{bucket.uri}/x")
    with monkeypatch.context() as patch:
        patch.setattr("s3fs.core.S3File.commit", Mock(side_effect=TimeoutError))
        with pytest.raises(StoreError, match="it does not answer"):
            store.upload("large", io.BytesIO(bytes(6 * 2**20)), 6 * 2**20)
    assert store.names() == {}
    assert "Uploads" not in store._system.call_s3("list_multipart_uploads", Bucket=bucket.uri.partition("://")[2])


def test_a_large_file_is_sent_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BLOCK", 4)
    store.upload("x", io.BytesIO(b"0123456789"), 9)
    assert store.read("x") == b"012345678"
