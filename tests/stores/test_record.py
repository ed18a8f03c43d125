from __future__ import annotations

import random
from pathlib import Path

import pytest

from tunelab.stores import record as record_module
from tunelab.stores.lease import TakenOverError
from tunelab.stores.record import FOLDER, StoredRecord, pull_record
from tunelab.stores.store import Store, StoreError


def lines(count: int, begin: int = 0) -> bytes:
    return b"".join(b'{"number":%d}\n' % number for number in range(begin, begin + count))


def grow(path: Path, content: bytes) -> int:
    with path.open("ab") as file:
        file.write(content)
    return path.stat().st_size


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_a_record_that_grows_is_there_in_few_segments_and_comes_back_whole(
    store: Store, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "LARGEST", 5000)
    sent: list[int] = []
    write = store.__class__.write
    monkeypatch.setattr(
        Store, "write", lambda self, name, content: (sent.append(len(content)), write(self, name, content))
    )
    luck = random.Random(1)
    record = StoredRecord(store)
    for turn in range(300):
        record.push(local, grow(local, lines(luck.randrange(1, 5), turn)))
        assert record.end == local.stat().st_size
    size = local.stat().st_size
    names = store.child(FOLDER).names()
    assert len(names) <= 2 * size / 5000 + 12
    assert sum(names.values()) == size
    assert sum(sent) < 12 * size, "each byte is sent a few times"
    fetched = tmp_path / "fetched"
    StoredRecord(store).pull(fetched)
    assert fetched.read_bytes() == local.read_bytes()


def test_a_segment_that_arrives_when_another_has_the_study_is_none_of_its_record(
    store: Store, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine fell asleep while it was being written; of two that begin alike the longer would count."""
    taken: list[str] = []

    def require() -> None:
        if taken:
            raise TakenOverError("taken over")

    record = StoredRecord(store.guarded(require))
    record.push(local, grow(local, lines(5)))
    put = Store.write

    def late(self: Store, name: str, content: bytes) -> None:
        if not taken:
            taken.append("by another")
            theirs = tmp_path / "theirs"
            StoredRecord(store).pull(theirs)
            monkeypatch.setattr(Store, "write", put)
            StoredRecord(store).push(theirs, grow(theirs, lines(2, 100)))
        put(self, name, content)

    monkeypatch.setattr(Store, "write", late)
    with pytest.raises(TakenOverError):
        record.push(local, grow(local, lines(50, 5)))
    found = tmp_path / "found"
    StoredRecord(store).pull(found)
    assert found.read_bytes() == (tmp_path / "theirs").read_bytes()


def test_segments_end_with_their_lines(store: Store, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "LARGEST", 40)
    StoredRecord(store).push(local, grow(local, lines(20) + b'{"a long line":"' + b"x" * 100 + b'"}\n' + lines(3)))
    for name in store.child(FOLDER).names():
        content = store.child(FOLDER).read(name)
        assert content is not None
        assert content.endswith(b"\n")


def test_what_a_local_record_is_to_the_stored_one(store: Store, local: Path, tmp_path: Path) -> None:
    assert StoredRecord(store).relation(local) == "equal"
    half = grow(local, lines(5))
    assert StoredRecord(store).relation(local) == "ahead"
    record = StoredRecord(store)
    record.push(local, half)
    assert StoredRecord(store).relation(local) == "equal"
    record.push(local, grow(local, lines(5, 5)))
    record.push(local, grow(local, lines(100, 10)))
    behind = tmp_path / "behind"
    for end in (0, 3, half, half + 3):
        behind.write_bytes(local.read_bytes()[:end])
        assert StoredRecord(store).relation(behind) == "behind"
    for end in (half + 3, local.stat().st_size, local.stat().st_size + 5):
        behind.write_bytes(bytes([*local.read_bytes(), *b"more\n"])[: end - 1].replace(b"7", b"8") + b"\n")
        assert StoredRecord(store).relation(behind) == "apart"
    assert StoredRecord(store).relation(tmp_path / "none") == "behind"


def test_a_record_is_brought_up_to_date_and_not_written_over(store: Store, local: Path, tmp_path: Path) -> None:
    record = StoredRecord(store)
    record.push(local, grow(local, lines(5)))
    other = tmp_path / "other"
    other.write_bytes(local.read_bytes())
    record.push(local, grow(local, lines(50, 5)))
    StoredRecord(store).pull(other)
    assert other.read_bytes() == local.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_process_left_of_a_merge_is_passed_over(store: Store, local: Path, tmp_path: Path) -> None:
    record = StoredRecord(store)
    record.push(local, grow(local, lines(5)))
    (small,) = store.child(FOLDER).names()
    content = store.child(FOLDER).read(small) or b""
    record.push(local, grow(local, lines(20, 5)))
    store.child(FOLDER).write(small, content)
    again = StoredRecord(store)
    again.pull(tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == local.read_bytes()
    again.push(local, grow(local, lines(1, 25)))
    assert small not in store.child(FOLDER).names()


def test_a_record_that_is_merged_while_it_is_read_is_read_again(
    store: Store, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = StoredRecord(store)
    record.push(local, grow(local, lines(5)))
    read, turns = Store.read, iter(range(1))

    def merge_first(self: Store, name: str, most: int) -> bytes | None:
        if next(turns, None) is not None:
            record.push(local, grow(local, lines(100)))
        return read(self, name, most)

    monkeypatch.setattr(Store, "read", merge_first)
    pull_record(store, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == local.read_bytes()


@pytest.mark.parametrize("how", ["gone", "damaged", "cut"])
def test_a_damaged_record_is_never_taken_for_a_whole_one(store: Store, local: Path, tmp_path: Path, how: str) -> None:
    record = StoredRecord(store)
    record.push(local, grow(local, lines(50)))
    record.push(local, grow(local, lines(5, 50)))
    first = min(store.child(FOLDER).names())
    content = store.child(FOLDER).read(first) or b""
    if how == "gone":
        store.child(FOLDER).remove(first)
        with pytest.raises(StoreError, match="the record lacks what comes after its first 0 bytes"):
            StoredRecord(store)
        return
    store.child(FOLDER).write(first, content[:-3] if how == "cut" else content.replace(b"7", b"8"))
    with pytest.raises(StoreError, match=f"{first} is damaged"):
        StoredRecord(store).pull(tmp_path / "fetched")
    assert list(tmp_path.glob("*fetched*")) == []
