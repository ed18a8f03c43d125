from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunelab.errors import InputError, StorageError, TunelabError
from tunelab.journal import (
    RESERVE,
    RESERVE_BYTES,
    Journal,
    StudyLockedError,
    decode,
    encode,
    is_locked,
    read_journal,
    uncollected,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
HOLDER = """
import sys
from pathlib import Path
from tunelab.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


def write(folder: Path, *events: dict[str, Any]) -> bytes:
    """The bytes of a record with these events."""
    journal = Journal.open(folder)
    for event in events:
        journal.append(event)
    journal.close()
    return (folder / "journal.jsonl").read_bytes()


def read(folder: Path) -> list[dict[str, Any]]:
    return list(read_journal(folder / "journal.jsonl"))


@given(st.dictionaries(st.text(), VALUES, min_size=1))
def test_a_line_gives_back_its_event(event: dict[str, Any]) -> None:
    line = encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == event
    if "crc" not in event:
        plain = json.loads(line)  # any program can read it
        assert len(plain.pop("crc")) == 8
        assert plain == event


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
def test_a_long_record_gives_back_all_events_in_order(count: int, tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    lines = [encode({"n": number, "text": "[{],"}) for number in range(count)]
    file.write_bytes(b"".join(lines))
    assert [event["n"] for event in read(tmp_path)] == list(range(count))
    file.write_bytes(b"".join(lines) + lines[0][:-5])
    assert [event["n"] for event in read(tmp_path)] == list(range(count)), "a last line that is being written"
    lines[900] = lines[900].replace(b"900", b"901")
    file.write_bytes(b"".join(lines))
    found = []
    with pytest.raises(TunelabError, match="line 901 is damaged"):
        found.extend(event["n"] for event in read_journal(file))
    assert found == list(range(900))


@pytest.mark.parametrize("on", [True, False])
def test_the_search_for_cycles_goes_on_after_reading(on: bool) -> None:
    (gc.enable if on else gc.disable)()
    try:
        with contextlib.suppress(KeyError), uncollected(), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is on
    finally:
        gc.enable()


@pytest.mark.parametrize("frozen", [False, True])
def test_what_was_read_is_not_looked_through_at_once(frozen: bool) -> None:
    gc.unfreeze()
    if frozen:
        gc.freeze()
    before = gc.get_freeze_count()
    try:
        with uncollected():
            made = [[number] for number in range(10_000)]
        after = gc.get_freeze_count()
        assert after <= before, "nothing else is frozen"
        assert (after > 0) is frozen, "what somebody else has frozen stays so, but for what is thrown away meanwhile"
        assert frozen or gc.get_count()[0] < 1000 < len(made)
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_a_line_that_is_no_event_in_spite_of_its_checksum_is_named_an_error(tmp_path: Path) -> None:
    body = b'"n":}'
    (tmp_path / "journal.jsonl").write_bytes(b'{"crc":"%08x",%s\n' % (zlib.crc32(body), body))
    with pytest.raises(TunelabError, match="holds a line that is no event"):
        read(tmp_path)


@given(st.binary())
def test_no_bytes_make_the_decoder_raise(line: bytes) -> None:
    assert decode(line) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, {"deep": -float("inf")}]])
def test_a_number_that_is_not_finite_is_not_recorded(tmp_path: Path, value: object) -> None:
    before = write(tmp_path, {"event": "first"})
    journal = Journal.open(tmp_path)
    with pytest.raises(ValueError):
        journal.append({"value": value})
    journal.close()
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_events_come_back_in_order(tmp_path: Path) -> None:
    events = [{"event": "é\n\0", "number": number} for number in range(20)]
    write(tmp_path, *events[:7])
    write(tmp_path, *events[7:])
    assert read(tmp_path) == events


def test_no_record_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    (tmp_path / "journal.jsonl").touch()
    assert read(tmp_path) == []


def test_a_torn_last_line_is_left_out_by_readers_and_cut_by_the_next_writer(tmp_path: Path) -> None:
    first, second, third = {"event": "first"}, {"event": "second"}, {"event": "third"}
    whole = write(tmp_path, first, second)
    file = tmp_path / "journal.jsonl"
    begin = whole.index(b"\n") + 1
    for cut in range(begin, len(whole)):
        file.write_bytes(whole[:cut])
        assert read(tmp_path) == [first]
        assert file.read_bytes() == whole[:cut], "reading changes nothing"
        write(tmp_path, third)
        assert read(tmp_path) == [first, third]


@pytest.mark.parametrize("change", [0x01, 0x20, 0x80])
def test_a_changed_byte_is_an_error_that_names_the_line(tmp_path: Path, change: int) -> None:
    whole = write(tmp_path, {"event": "first"}, {"event": "second", "x": [1, 2.5]}, {"event": "third"})
    file = tmp_path / "journal.jsonl"
    begin = whole.index(b"\n") + 1
    end = whole.index(b"\n", begin)
    for at in range(begin, end + 1):
        damaged = whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :]
        file.write_bytes(damaged)
        if at == end:  # lines 2 and 3 have become one, the last
            assert read(tmp_path) == [{"event": "first"}]
            continue
        with pytest.raises(TunelabError, match=r"journal\.jsonl, line 2 is damaged.*restore"):
            read(tmp_path)
        with pytest.raises(TunelabError, match="line 2 is damaged"):
            Journal.open(tmp_path)
        assert file.read_bytes() == damaged, "damage is never repaired by guessing"
        assert not is_locked(tmp_path)


def test_a_garbled_last_line_never_counted(tmp_path: Path) -> None:
    """As a power cut may leave it: its length was on the disk and its content was not."""
    whole = write(tmp_path, {"event": "first"}, {"event": "second"})
    begin = whole.index(b"\n") + 1
    (tmp_path / "journal.jsonl").write_bytes(whole[:begin] + bytes(len(whole) - begin - 1) + b"\n")
    assert read(tmp_path) == [{"event": "first"}]
    write(tmp_path, {"event": "third"})
    assert read(tmp_path) == [{"event": "first"}, {"event": "third"}]


def test_a_line_break_inside_a_line_is_damage(tmp_path: Path) -> None:
    whole = write(tmp_path, {"event": "first", "long": "x" * 50}, {"event": "second"})
    (tmp_path / "journal.jsonl").write_bytes(whole[:40] + b"\n" + whole[41:])
    with pytest.raises(TunelabError, match="line 1 is damaged"):
        read(tmp_path)


def test_an_event_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bytes]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name, path.read_bytes() if path.is_file() else b""))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    journal = Journal.open(tmp_path)
    assert (tmp_path.name, b"") in synced, "the name of a new file must be on the disk too"
    synced.clear()
    for number in range(3):
        journal.append({"number": number})
        assert synced.pop() == ("journal.jsonl", b"".join(encode({"number": n}) for n in range(number + 1)))
        assert synced == []
    journal.close()


def test_events_that_are_written_together_wait_for_the_disk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    real = os.fsync
    events = [{"number": number} for number in range(5)]
    journal = Journal.open(tmp_path)

    def fsync(descriptor: int) -> None:
        synced.append((tmp_path / "journal.jsonl").read_bytes())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    journal.append(*events)
    assert synced == [b"".join(map(encode, events))]
    assert journal.end == len(synced[0])
    journal.close()
    assert read(tmp_path) == events


def test_a_crash_among_events_that_are_written_together_leaves_the_first_of_them(tmp_path: Path) -> None:
    first, more = {"event": "first"}, [{"event": "result"}, {"event": "decision"}, {"event": "ended"}]
    whole = write(tmp_path, first, *more)
    ends = [len(b"".join(map(encode, [first, *more[:count]]))) for count in range(len(more) + 1)]
    for cut in range(ends[0], len(whole)):
        (tmp_path / "journal.jsonl").write_bytes(whole[:cut])
        there = sum(end <= cut for end in ends) - 1
        assert read(tmp_path) == [first, *more[:there]]
        journal = Journal.open(tmp_path)
        journal.append(*more[there:])
        journal.close()
        assert (tmp_path / "journal.jsonl").read_bytes() == whole


def test_of_events_that_are_written_together_none_stays_if_one_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(tmp_path, {"event": "first"})
    journal = Journal.open(tmp_path)
    real, room = os.write, [30]

    def write_some(descriptor: int, lines: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, lines[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some)
        with pytest.raises(StorageError, match="No space left on device"):
            journal.append({"event": "a"}, {"event": "b"}, {"event": "c"})
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    assert journal.end == len(before)
    journal.close()


def test_an_event_that_does_not_reach_the_disk_is_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    before = write(tmp_path, {"event": "first"})
    journal = Journal.open(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(TunelabError, match=r"journal\.jsonl cannot be written: Input/output error"):
            journal.append({"event": "second"})
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    journal.append({"event": "third"})
    journal.close()
    assert read(tmp_path) == [{"event": "first"}, {"event": "third"}]


@pytest.mark.parametrize("room", [0, 1, 25])
def test_a_full_disk_leaves_the_record_as_it_was(tmp_path: Path, room: int) -> None:
    before = write(tmp_path, {"event": "first"})
    code = """
        import resource, sys
        from pathlib import Path
        from tunelab.errors import TunelabError
        from tunelab.journal import Journal
        folder, limit = Path(sys.argv[1]), int(sys.argv[2])
        journal = Journal.open(folder)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            journal.append({"event": "second, longer than there is room for"})
        except TunelabError as error:
            print(error)
        print((folder / "journal.jsonl").stat().st_size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        journal.append({"event": "third"})
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(len(before) + room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said, size = done.stdout.splitlines()
    assert "journal.jsonl cannot be written: File too large" in said
    assert int(size) == len(before)
    assert read(tmp_path) == [{"event": "first"}, {"event": "third"}]


class Disk:
    """Has room for no line while a file is there, or ever; `gone` says what else is wrong with it."""

    def __init__(self, occupied: Path | None = None) -> None:
        self.occupied = occupied
        self.gone = 0
        self.attempts = 0
        self._write = os.write

    def write(self, descriptor: int, line: bytes) -> int:
        self.attempts += 1
        if self.gone:
            raise OSError(self.gone, os.strerror(self.gone))
        if self.occupied is not None and self.occupied.exists():
            if len(line) > 5:
                return self._write(descriptor, line[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, line)


def test_the_reserve_is_given_back_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"event": "first"})
    journal = Journal.open(tmp_path)
    assert journal.reserve()
    assert journal.reserve()
    held = (tmp_path / RESERVE).stat()
    assert held.st_size == RESERVE_BYTES
    assert held.st_blocks * 512 >= RESERVE_BYTES, "it holds real room"
    disk = Disk(tmp_path / RESERVE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk.write)
        journal.append({"event": "second"})
        assert not (tmp_path / RESERVE).exists()
        (tmp_path / "other").touch()
        disk.occupied = tmp_path / "other"
        disk.attempts = 0
        before = (tmp_path / "journal.jsonl").read_bytes()
        with pytest.raises(StorageError, match="cannot be written: No space left on device"):
            journal.append({"event": "third, for which there is none"})
        assert (tmp_path / "journal.jsonl").read_bytes() == before
    assert journal.reserve()
    journal.append({"event": "fourth"})
    journal.close()
    assert not (tmp_path / RESERVE).exists()
    assert read(tmp_path) == [{"event": "first"}, {"event": "second"}, {"event": "fourth"}]


@pytest.mark.parametrize("wrong", [errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_record_that_is_gone_can_be_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    write(tmp_path, {"event": "first"})
    journal = Journal.open(tmp_path)
    journal.reserve()
    disk = Disk()
    disk.gone = wrong

    def cut(_file: int, _size: int) -> None:
        raise OSError(wrong, os.strerror(wrong))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk.write)
        patch.setattr(os, "ftruncate", cut)
        with pytest.raises(StorageError, match=os.strerror(wrong)) as raised:
            journal.append({"event": "second"})
    assert raised.value.exit_status == 3
    assert (tmp_path / RESERVE).exists(), "it would be of no use"
    with pytest.raises(StorageError, match=os.strerror(wrong)):
        journal.append({"event": "third"})  # it might follow half a line
    journal.close()
    again = Journal.open(tmp_path)
    again.append({"event": "fourth"})
    again.close()
    assert read(tmp_path) == [{"event": "first"}, {"event": "fourth"}]


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_given: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=f"the study {tmp_path} cannot be written: Read-only file system"):
        Journal.open(tmp_path)


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        assert is_locked(tmp_path)
        with pytest.raises(StudyLockedError, match=rf"being written by process {holder.pid} on ") as refused:
            Journal.open(tmp_path)
        assert refused.value.exit_status == 2
        assert str(tmp_path) in str(refused.value)
        assert is_locked(tmp_path), "a refused writer takes nothing from the first"
        holder.send_signal(signal.SIGKILL)
    assert not is_locked(tmp_path)
    write(tmp_path, {"event": "after"})
    assert f"process {os.getpid()}" in (tmp_path / "lock").read_text()


def test_writers_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    with pytest.raises(StudyLockedError):
        Journal.open(tmp_path)
    journal.close()
    Journal.open(tmp_path).close()
    assert not is_locked(tmp_path)


def test_a_process_that_the_writer_starts_does_not_keep_the_lock(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        journal.close()
        assert not is_locked(tmp_path)
        child.kill()


def test_a_reader_that_asks_does_not_turn_a_writer_away(tmp_path: Path) -> None:
    write(tmp_path, {"event": "first"})
    asking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)

    def leave() -> None:
        time.sleep(0.1)
        os.close(asking)

    thread = threading.Thread(target=leave)
    thread.start()
    Journal.open(tmp_path).close()
    thread.join()


def test_the_record_is_private(tmp_path: Path) -> None:
    write(tmp_path, {"event": "first"})
    assert (tmp_path / "journal.jsonl").stat().st_mode & 0o077 == 0


def test_a_failed_opening_leaves_no_open_file(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b"damage\n" + encode({"event": "second"}))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(TunelabError, match="line 1 is damaged"):
        Journal.open(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_line_that_is_being_written_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first, second, third = (encode({"event": "x", "number": number}) for number in range(3))
    path.write_bytes(first + second[:10])
    reading = read_journal(path)
    assert next(reading)["number"] == 0
    with path.open("ab") as stream:
        stream.write(second[10:] + third)
    assert [event["number"] for event in reading] in ([], [1, 2])


def test_a_text_with_the_name_of_an_odd_file_is_read_back(tmp_path: Path) -> None:
    """What is no UTF-8 in a name is half a character in Python, which not every reader of JSON takes."""
    name = os.fsdecode(b"/data/caf\xe9")
    journal = Journal.open(tmp_path)
    journal.append({"event": "result", "notes": [f"{name} was passed over"]})
    journal.append({"event": "ended"})
    journal.close()
    assert [event.get("notes") for event in read_journal(tmp_path / "journal.jsonl")] == [
        [f"{name} was passed over"],
        None,
    ]
