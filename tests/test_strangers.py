"""What strangers made is data: it runs no code, is not waited for, leads nowhere else, and takes little memory."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tunelab.cli import run
from tunelab.errors import InputError
from tunelab.files import note_on, open_file, read_file, read_json
from tunelab.journal import Journal, decode, encode

if TYPE_CHECKING:
    from tests.conftest import MakeModel, MakeStudy
    from tunelab.study import Study

READING = ["show", "best", "report", "resume", "diagnose", "importance", "predict", "export", "reproduce"]


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def words_of(command: str, study: Path, image: Path) -> list[str]:
    """A command about a study."""
    more = {"predict": [str(image)], "reproduce": ["0"], "ablate": ["--list"]}.get(command, [])
    return [command, str(study), *more]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study([("COMPLETED", [0.5, 0.6, 0.7, 0.8]), ("STOPPED", [0.2])])


@pytest.mark.parametrize("command", [*READING, "compare", "extend"])
def test_pickles_in_the_place_of_every_file_are_not_run(
    command: str, study: Study, make_model: MakeModel, image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    retrained = make_model(folder=study.path / "retrain-1")
    content = pickle.dumps(Marker(tmp_path / "ran"))
    names = ["optuna.journal", "trials.jsonl", "earlier.jsonl", "test_reads.jsonl", "tuner.pkl", "searcher-state-1.pkl"]
    names += ["trials/0000/checkpoint/last.pt", "trials/0000/checkpoint/best.pt", "trials/0000/health.json"]
    for name in names:
        (study.path / name).parent.mkdir(parents=True, exist_ok=True)
        (study.path / name).write_bytes(content)
    for file in (study.path / "study.json", retrained / "model.safetensors", study.path / "journal.jsonl"):
        kept = file.read_bytes()
        file.write_bytes(content)
        words = ["compare", str(study.path), str(study.path)] if command == "compare" else None
        words = words or words_of(command, study.path, image)
        status = run(words if command != "extend" else [*words, "--trials", "9"])
        needed = file.name == "study.json" and command not in ("predict", "export")
        assert status == 2 or (status == 0 and not needed), capfd.readouterr().err
        assert not (tmp_path / "ran").exists()
        file.write_bytes(kept)
    pickle.loads(content)  # noqa: S301
    assert (tmp_path / "ran").exists()  # the marker is one


def test_names_that_are_no_text_are_shown_with_their_odd_bytes(make_study: MakeStudy) -> None:
    """Those of folders can be any bytes; Python has half a character for each that is no text."""
    study = make_study([("COMPLETED", [0.5] * 4)])
    record = study.path / "journal.jsonl"
    first, *rest = record.read_bytes().splitlines(keepends=True)
    event = decode(first)
    assert event is not None
    event["params"]["folder"] = os.fsdecode(b"/images/\xe4")
    record.write_bytes(encode(event) + b"".join(rest))
    for words in (["show", str(study.path), "0"], ["best", str(study.path)], ["report", str(study.path)]):
        called = [sys.executable, "-m", "tunelab.cli", *words]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "0"}
        done = subprocess.run(called, capture_output=True, env=environment, timeout=300)
        assert (done.returncode, done.stderr) == (0, b"")
    assert b"/images/\\udce4" in (study.path / "report" / "index.html").read_bytes()


def test_a_study_cannot_name_code_that_is_run(study: Study, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`resume` and `extend` load the space that a study names: of a file, only if this user gave it."""
    code = study.path / "space.py"
    code.write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})\n")
    study.update(lambda info: {"space": {"name": "space", "source": str(code), "version": 1}})
    for words in (["resume"], ["extend", "--trials", "9"]):
        assert run([words[0], str(study.path), *words[1:]]) == 2
        assert f"`tunelab trust {code}` allows it" in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert run(["trust", str(code)]) == 0
    assert run(["resume", str(study.path)]) == 2  # it is no space, which is found out by running it
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["study.json", "journal.jsonl", "lock", "earlier.jsonl", "optuna.journal"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    name: str, kind: str, study: Study, capfd: pytest.CaptureFixture[str]
) -> None:
    file = study.path / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(name)
    for command in ("show", "resume"):
        assert run([command, str(study.path)]) in (0, 2), capfd.readouterr().err
        assert "unexpected" not in capfd.readouterr().err


def test_devices_and_pipes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a file"):
            open_file(path)
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    for name in ("a\0b", "\ud800"):
        with pytest.raises(FileNotFoundError):
            open_file(tmp_path / name)
    (tmp_path / "long").write_bytes(b"x" * 11)
    assert read_file(tmp_path / "long", 11) == b"x" * 11
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_file(tmp_path / "long", 10)
    (tmp_path / "deep").write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep")


@pytest.mark.parametrize("name", ["lock", "journal.jsonl", "trials.csv", ".trials.csv.tmp", "report", "trials/0000"])
def test_a_link_in_a_study_does_not_lead_writing_elsewhere(
    name: str, study: Study, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (study.path / name).parent.mkdir(exist_ok=True)
    (study.path / name).unlink(missing_ok=True)
    (study.path / name).symlink_to(precious)
    for words in (["resume", str(study.path)], ["report", str(study.path)], ["best", str(study.path), "--retrain"]):
        assert run(words) == 2
    with pytest.raises(InputError, match=r"is a link|no file"):
        Journal.open(study.path).close()
    assert precious.read_text() == "precious"
    assert name in capfd.readouterr().err


def test_a_link_inside_a_study_is_no_harm(study: Study) -> None:
    (study.path / "newest").symlink_to(study.path / "study.json")
    Journal.open(study.path).close()


def test_a_folder_that_others_can_change_is_told_of(
    study: Study, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert note_on(study.path) == ""
    study.path.chmod(0o777)
    assert run(["show", str(study.path)]) == 0
    assert "can be written by every user" in capfd.readouterr().err
    study.path.chmod(0o700)
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert (note_on(study.path) == "") == (mine == 0)
    monkeypatch.setattr(Path, "stat", lambda self: os.stat_result((0o40700, 1, 1, 1, mine + 7, 1, 1, 1, 1, 1)))
    assert f"belongs to another user (number {mine + 7})" in note_on(study.path)


def test_a_changing_file_is_read_once(study: Study) -> None:
    """While one appends whole lines and cuts them off in between, a reader sees lines or says that one is damaged."""
    file = study.path / "journal.jsonl"
    content, ends = file.read_bytes(), threading.Event()

    def change() -> None:
        while not ends.is_set():
            with file.open("r+b") as stream:
                stream.seek(0, 2)
                stream.write(encode({"event": "something", "trial": 0})[: len(content) % 40])
                stream.truncate(len(content))

    writer = threading.Thread(target=change)
    writer.start()
    try:
        for _ in range(30):
            assert len(study.list_trials()) == 2
    finally:
        ends.set()
        writer.join()


# Each command in a process of its own that may take so much memory beyond what imports take, which are made once.
LIMITED = """
import json, os, resource, sys
from tunelab.cli import run
import tunelab.analysis.predict, tunelab.tuning.runner, tunelab.analysis.describe  # what is imported is no part of it
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
answers = []
for words in json.loads(sys.argv[1]):
    said = os.memfd_create("said")
    child = os.fork()
    if child == 0:
        os.dup2(said, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20,) * 2)
        os._exit(run(words))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.lseek(said, 0, os.SEEK_SET)
    answers.append((status, os.read(said, 10**6).decode()))
    os.close(said)
print(json.dumps(answers))
"""


def asked_with_little_memory(*commands: Sequence[str]) -> list[tuple[int, str]]:
    """The status of each command and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(commands)], capture_output=True, text=True, timeout=250, check=True
    )
    return [(status, said) for status, said in json.loads(done.stdout)]


def sparse(path: Path, size: int, begin: bytes = b"") -> None:
    """A file that says that it is long and takes no room."""
    path.write_bytes(begin)
    os.truncate(path, size)


@pytest.mark.slow
def test_bombs_take_no_memory(study: Study, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    huge = tmp_path / "huge.png"
    head = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    huge.write_bytes(
        b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big") + b"\0\0\0\0IEND"
    )
    text = b"zTXta\0\0" + zlib.compress(bytes(300 * 2**20))
    chunk = len(text[4:]).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    small = (tmp_path / "small.png").read_bytes()
    (tmp_path / "text.png").write_bytes(small[:33] + chunk + small[33:])
    frames = [Image.new("P", (64, 64), number % 200) for number in range(1000)]
    frames[0].save(tmp_path / "many.gif", save_all=True, append_images=frames[1:])
    zeros = tmp_path / "zeros.npz"
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_2_0(
                member, {"descr": "|u1", "fortran_order": True, "shape": (12_800, 256, 256)}
            )
            for _ in range(25):  # 800 MiB
                member.write(bytes(32 * 2**20))
        with archive.open("labels.npy", "w") as member:
            np.save(member, np.arange(12_800) % 3)
    aliases = tmp_path / "laughs.yaml"
    aliases.write_text("".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'ha'] * 9)}]\n" for n in range(12)))
    asked = [
        (["predict", str(model), str(huge)], 2),
        (["predict", str(model), str(tmp_path / "text.png")], 2),
        (["predict", str(model), str(tmp_path / "many.gif")], 0),
        (["search", "lenet", "--dry-run", "--data", f"npz:{zeros}"], 2),
        (["best", str(study.path), "--retrain", "--recipe", str(aliases)], 2),
        (["search", "lenet", "--grid", str(aliases), "--dry-run"], 2),
        (["describe", str(aliases)], 2),
    ]
    for name in ("study.json", "journal.jsonl"):
        broken = tmp_path / f"broken-{name}"
        shutil.copytree(study.path, broken)
        sparse(broken / name, 10 * 2**30, b'{"format": 1, ')
        asked.append((["show", str(broken)], 2))
    padded = tmp_path / "padded"
    shutil.copytree(model, padded)
    os.truncate(padded / "config.json", 10 * 2**30)
    asked.append((["predict", str(padded), str(tmp_path / "small.png")], 2))
    answers = asked_with_little_memory(*(words for words, _status in asked))
    for (words, status), (found, said) in zip(asked, answers, strict=True):
        assert found == status, (words, said)
        assert "Traceback" not in said
