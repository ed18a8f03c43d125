"""Searches as people start them: the command in a process of its own, on a real Ray, with real signals and kills."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunelab.config import DataConfig
from tunelab.data.cache import prepare
from tunelab.errors import InputError
from tunelab.journal import is_locked, read_journal
from tunelab.records import Trial, TrialStatus
from tunelab.study import Study, load, proposed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block, and recipes that cannot work"
VERSION = 1
BASELINES = ({"lr": 0.1, "kind": "good"},)


def draw(suggest):
    lr = suggest.suggest_float("lr", 0.001, 0.5, log=True)
    kind = suggest.suggest_categorical("kind", KINDS)
    good = {"lr": 1e-9 if kind == "idles" else lr, "batch_size": BATCH}
    recipe = {"lr": 1000.0, "batch_size": 8, "precision": "float32"} if kind == "diverges" else good
    return TrialConfig(
        ArchSpec(
            StemSpec(4),
            ((BlockSpec("basic", 4, 2, 1),),),
            activation="leaky_relu",
            norm="none" if kind == "diverges" else "batch",
        ),
        TrainConfig(optimizer="nothing" if kind == "raises" else "sgd", **recipe),
    )
"""
LENETS = """
from tunelab.config import LeNetSpec, TrainConfig, TrialConfig

SUMMARY = "LeNet-5"
VERSION = 1
BASELINES = ({"pooling": "average", "init": "lecun", "lr": 0.05},)


def draw(suggest):
    pooling = suggest.suggest_categorical("pooling", ("average", "max"))
    arch = LeNetSpec("relu", pooling, suggest.suggest_categorical("init", ("torch", "lecun", "xavier", "he")))
    return TrialConfig(arch, TrainConfig(batch_size=16, lr=suggest.suggest_float("lr", 0.01, 0.2, log=True)))
"""
MARK = "TUNELAB_TEST_MARK"
PROVOKED = Path(__file__).resolve().parents[2] / "benchmarks" / "provoked"


def write_space(folder: Path, *kinds: str, batch: int = 32) -> str:
    """A space file; kinds other than "good" are "raises", "diverges" and "idles". A small batch makes long epochs."""
    file = folder / "small.py"
    file.write_text(f"KINDS = {('good', *kinds)!r}\nBATCH = {batch}\n{SPACE}")
    return str(file)


class Machine:
    """Runs commands whose processes, and whose processes' processes, can be told from all others."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        # Short: Ray puts sockets below it. Nobody else writes into it, so that what is left there was left by us.
        self.temporary = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, MARK: self.mark, "TMPDIR": str(self.temporary), **more}

    def start(self, *arguments: str, ignore: signal.Signals | None = None, **more: str) -> subprocess.Popen[str]:
        """Starts a command in a group of its own, as a shell does."""
        begin = f"import signal; signal.signal({int(ignore)}, signal.SIG_IGN); " if ignore else ""
        code = begin + "import sys; from tunelab.cli import run; sys.exit(run(sys.argv[1:]))"
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs because of these commands."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def workers(self) -> list[psutil.Process]:
        """The processes that train, by the titles that Ray gives them while they rest and while they work."""
        titles = ("ray::TrialWorker", "ray::ResourceTrainable")
        return [process for process in self.processes() if self._is_ours(process, titles)]

    def _is_ours(self, process: psutil.Process, titles: tuple[str, ...] = ("",)) -> bool:
        try:
            ours = process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
            return ours and " ".join(process.cmdline()).startswith(titles)
        except (psutil.Error, OSError):
            return False  # gone, or somebody else's

    def assert_nothing_runs(self) -> None:
        """No process of Ray outlives its driver by more than a few seconds."""
        wait_until(lambda: not self.processes(), 30)

    def assert_nothing_is_left(self) -> None:
        self.assert_nothing_runs()
        assert [path.name for path in self.temporary.iterdir() if path.name.startswith("tunelab-")] == []


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    for process in made.processes():
        process.kill()
    shutil.rmtree(made.temporary)


def wait_until(condition: Callable[[], object], seconds: float, process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"the command has ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def events(study: Path, kind: str) -> list[dict[str, object]]:
    return [event for event in read_journal(study / "journal.jsonl") if event["event"] == kind]


def trained_steps(study: Study, number: int) -> list[int]:
    """The epochs in a trial's TensorBoard events."""
    accumulator = EventAccumulator(str(study.trial_folder(number) / "events"))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return [point.step for point in accumulator.Scalars(tags[0])] if tags else []


def check_books(path: Path, trials: int, epochs: int) -> list[Trial]:
    """What must hold when a search has ended, however often it was interrupted; the trials without the repeats."""
    study = load(path)
    ended = study.list_trials()
    own = proposed(ended)
    assert [trial.number for trial in ended] == list(range(len(ended)))
    assert len(own) == trials
    assert all(trial.status.ended for trial in ended)
    for kind in ("proposed", "ended"):
        assert sorted(int(str(event["trial"])) for event in events(path, kind)) == list(range(len(ended))), kind
    assert len({json.dumps({**trial.config, "seed": 0}) for trial in own}) == trials, "all configurations differ"
    assert len({trial.config["seed"] for trial in ended}) == len(ended), "all seeds differ"
    for trial in ended:
        numbers = [metrics.epoch for metrics in trial.epochs]
        assert numbers == list(range(1, len(numbers) + 1)), "every epoch once"
        assert (trial.status is TrialStatus.COMPLETED) == (len(numbers) == epochs)
        folder = study.trial_folder(trial.number) / "events"
        if trial.epochs:
            assert trained_steps(study, trial.number) == numbers
        for kind in ("started", "ended"):
            assert len(list(folder.glob(f"*.{kind}"))) == 1, "TensorBoard's table is told of each trial once"
    assert len((path / "trials.jsonl").read_text().splitlines()) == len(ended)
    return own


# A search from its beginning to its end.


@pytest.fixture(scope="module")
def finished(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A search with every kind of end, on data whose test images are gone. `args[0]` is the study's path."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELAB_CACHE", str(folder / "cache"))
        prepare(DataConfig(limit_train=400))
    tests = list((folder / "cache" / "data").glob("*/test*"))
    assert len(tests) == 2
    for file in tests:
        file.unlink()
    space = write_space(folder, "idles", "raises", "diverges", batch=8)  # a good one is far ahead of an idle one
    command = ["search", space, "--study", str(folder / "study")]
    options = ["--trials", "9", "--epochs", "4", "--limit-train", "400", "--concurrent", "2", "--seed", "0"]
    more = {"TUNELAB_CACHE": str(folder / "cache"), "RAY_ADDRESS": "10.255.255.1:6379"}
    done = machine.run(*command, *options, **more)
    return subprocess.CompletedProcess([str(folder / "study"), *command], done.returncode, done.stdout, done.stderr)


def test_a_search_ends_with_its_ranking(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, finished.stderr
    first, header, *rows = finished.stdout.splitlines()
    assert first.startswith(f"{finished.args[0]}: 9 of 9 trials begun (")
    assert header.split()[:4] == ["rank", "trial", "val", "acc"]
    assert rows[0].split()[0] == "1"
    assert rows[-1].startswith("next: tunelab best ")
    assert " went on at epoch 1; " in rows[-2]


def test_every_trial_has_ended_as_it_must(finished: subprocess.CompletedProcess[str]) -> None:
    trials = check_books(Path(finished.args[0]), 9, 4)
    assert {trial.status.value for trial in trials} == {"COMPLETED", "STOPPED", "DIVERGED", "FAILED"}
    for trial in trials:
        kind = trial.params["kind"]
        assert (trial.status is TrialStatus.FAILED) == (kind == "raises")
        assert (trial.status is TrialStatus.DIVERGED) == (kind == "diverges")
        if kind == "raises":
            assert trial.reason.startswith("InputError: optimizer 'nothing' is unknown; allowed are")
        if kind == "diverges":
            assert trial.reason.startswith("epoch 1: the training loss became")
        if trial.status is TrialStatus.STOPPED:
            assert re.fullmatch(r"epoch [13]: place \d of \d, \d go on", trial.reason)
    assert trials[0].status is TrialStatus.COMPLETED, "the baseline always runs its full length"


def test_optunas_journal_tells_the_truth(finished: subprocess.CompletedProcess[str]) -> None:
    path = Path(finished.args[0])
    storage = JournalStorage(JournalFileBackend(str(path / "optuna.journal")))
    states = [trial.state.name for trial in optuna.load_study(study_name="small", storage=storage).trials]
    told = {"COMPLETED": "COMPLETE", "STOPPED": "PRUNED", "DIVERGED": "FAIL", "FAILED": "FAIL"}
    assert states == [told[trial.status.value] for trial in load(path).list_trials()]


def test_the_terminal_shows_trials_and_nothing_of_ray(finished: subprocess.CompletedProcess[str]) -> None:
    said = [line for line in finished.stderr.splitlines() if not line.startswith("note: it is being measured ")]
    forecast, _layout, _room, title, *lines = said
    assert forecast.startswith("forecast: 9 trials need ")
    assert title == f"small on digits: 9 trials of 4 epochs -> {finished.args[0]}"
    assert len(lines) == len(load(Path(finished.args[0])).list_trials())
    ends = r"(\(trial \d again\) )?(completed|stopped  |diverged |failed   )"
    assert all(re.match(rf"trial  [ \d]\d {ends} .*\[\d/9 trials, ", line) for line in lines), finished.stderr
    assert "WARNING" in (Path(finished.args[0]) / "ray.log").read_text(), "where Ray's words are"


def test_all_that_a_search_writes_is_its_owners(finished: subprocess.CompletedProcess[str]) -> None:
    """Folders are closed to others; files are no more open than the umask says, and nobody gets to them."""
    path = Path(finished.args[0])
    mask = os.umask(0o022)
    os.umask(mask)
    cache = path.parent / "cache"
    entries = [path, cache, *path.rglob("*"), *(cache / "data").rglob("*")]
    modes = {entry: stat.S_IMODE(entry.lstat().st_mode) for entry in entries}
    assert [str(entry) for entry, mode in modes.items() if entry.is_dir() and mode & 0o077] == []
    assert [str(entry) for entry, mode in modes.items() if entry.is_file() and mode & (mask | 0o113)] == []
    assert {"events", "checkpoint"} <= {entry.name for entry in entries if entry.is_dir()}


def test_the_folder_of_a_study(finished: subprocess.CompletedProcess[str]) -> None:
    path = Path(finished.args[0])
    assert {file.name for file in path.iterdir()} == {
        "journal.jsonl",
        "lock",
        "optuna.journal",
        "ray.log",
        "runs_summary.csv",
        "study.json",
        "trials",
        "trials.csv",
        "trials.jsonl",
    }
    assert [stat.S_IMODE(folder.stat().st_mode) & 0o077 for folder in (path, path / "trials")] == [0, 0]
    assert {file.name for file in (path / "trials" / "0000").iterdir()} == {
        "checkpoint",
        "events",
        "experiment_template.json",
        "health.json",
    }
    assert {file.name for file in (path / "trials" / "0000" / "checkpoint").iterdir()} == {"best.pt", "last.pt"}
    failed = next(trial.number for trial in load(path).list_trials() if trial.status is TrialStatus.FAILED)
    assert "Traceback" in (path / "trials" / f"{failed:04d}" / "error.txt").read_text()


def test_nothing_of_ray_is_left(machine: Machine, finished: subprocess.CompletedProcess[str]) -> None:
    machine.assert_nothing_is_left()
    assert not is_locked(Path(finished.args[0]))


def test_a_finished_search_is_not_begun_again(machine: Machine, finished: subprocess.CompletedProcess[str]) -> None:
    path = Path(finished.args[0])
    before = (path / "journal.jsonl").read_bytes()
    done = machine.run("resume", str(path), TUNELAB_CACHE=str(path.parent / "cache"))
    assert (done.returncode, done.stdout) == (0, finished.stdout)
    assert (path / "journal.jsonl").read_bytes() == before


# A space of networks of another family.


def write_stripes(path: Path) -> None:
    """Grey images of 28x28 in two classes, with stripes across or along."""
    random = np.random.default_rng(0)
    labels = np.arange(240) % 2
    stripes = np.zeros((28, 28))
    stripes[::4] = 100
    images = random.integers(0, 100, (240, 28, 28)) + np.where(labels[:, None, None] == 1, stripes, stripes.T)
    np.savez(path, images=images.astype(np.uint8), labels=labels)


def test_lenets_are_searched_ranked_and_trained_in_full(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "lenets.py").write_text(LENETS)
    write_stripes(tmp_path / "stripes.npz")
    space, study = str(tmp_path / "lenets.py"), str(tmp_path / "study")
    data = f"npz:{tmp_path}/stripes.npz"
    length = ["--trials", "3", "--epochs", "3", "--concurrent", "1"]
    quick = {"PYTHONPATH": str(PROVOKED), "PROVOKED_QUICK": "1"}  # the retraining measures the machine
    done = machine.run("search", space, "--study", study, "--data", data, *length, **quick)
    assert done.returncode == 0, done.stderr
    assert "LeNet-5 average pool, init " in done.stdout
    trials = check_books(Path(study), 3, 3)
    assert {trial.stats["params"] for trial in trials} == {61_706 - 8 * 85}
    best = load(study).best()
    assert best.score is not None
    assert best.score > 0.9
    done = machine.run("best", study, "--retrain", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    assert len(list(Path(study).glob("retrain-*/model.safetensors"))) == 1
    machine.assert_nothing_is_left()


# Interrupted; by kills, and while something else goes wrong, in tests/faults.


@pytest.mark.usefixtures("no_calibration")
def test_what_the_whole_group_is_told_stops_a_search_as_what_its_driver_is_told(
    machine: Machine, tmp_path: Path, sockets_beyond: Callable[[Iterable[psutil.Process]], list[str]]
) -> None:
    """As `timeout` and batch systems do, and a terminal that is closed; who ignores that, as under nohup, goes on."""
    path = tmp_path / "study"
    long = ["--trials", "5", "--epochs", "99", "--limit-train", "200", "--concurrent", "1"]
    process = machine.start("search", write_space(tmp_path, batch=2), "--study", str(path), *long, ignore=signal.SIGHUP)
    wait_until(lambda: (path / "journal.jsonl").exists() and events(path, "result"), 120, process)
    assert sockets_beyond(machine.processes()) == [], "nothing listens beyond the loopback interface"
    os.killpg(process.pid, signal.SIGHUP)
    before = len(events(path, "result"))
    wait_until(lambda: len(events(path, "result")) > before + 1, 120, process)
    assert_stops(process, signal.SIGTERM)
    machine.assert_nothing_runs()
    done = machine.run("resume", str(path), "--deadline", "0.001s")
    assert done.returncode == 3, done.stderr
    assert "stopped before the end (deadline)" in done.stderr
    before = len(events(path, "result"))
    process = machine.start("resume", str(path))
    wait_until(lambda: len(events(path, "result")) > before, 120, process)
    assert_stops(process, signal.SIGHUP)
    machine.assert_nothing_is_left()


def assert_stops(process: subprocess.Popen[str], why: signal.Signals) -> None:
    """The whole group is told; the search pauses and says what is left to do."""
    os.killpg(process.pid, why)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3, err
    assert f"stopped before the end ({why.name}): " in err.splitlines()[-1]


# Searches from Python.


@pytest.mark.usefixtures("no_calibration")
def test_a_program_that_searches(machine: Machine, tmp_path: Path) -> None:
    """It is told what fails, is as it was afterwards, and can search again, or use Ray itself.

    Where temporary files go to a long path, Ray's sockets have a short one.
    """
    code = """
        import os, signal, sys
        from pathlib import Path
        import ray
        import sklearn  # sets a variable when it is first imported, to decode the digits
        import tunelab
        from tunelab.journal import Journal

        space, folder = sys.argv[1:]
        given = dict(trials=12, epochs=2, limit_train=50, progress=False, concurrent=1)

        def state():
            signals = [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
            mask = os.umask(0o022); os.umask(mask)
            files = [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)]
            return dict(os.environ), signals, mask, os.getcwd(), files, ray.is_initialized()

        def search(name):
            before = state()
            try:
                print(tunelab.search(space, study=f"{folder}/{name}", **given))
            except tunelab.TunelabError as error:
                print(error.exit_status, error)
            print(*[one == other or (one, other) for one, other in zip(state(), before)])

        # The disk fills up after ten events.
        real, left = Journal.append, [10]

        def append(journal, *events):
            left[0] -= len(events)
            if left[0] < 0:
                raise tunelab.TunelabError("the record cannot be written: No space left on device")
            real(journal, *events)

        Journal.append = append
        search("full")
        Journal.append = real

        # Every trial fails, which the calibration would have found out.
        Path(space).write_text(Path(space).read_text().replace('"sgd"', '"nothing"'))
        search("fails")

        # Ray that the program started itself is left alone.
        quiet = dict(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        ray.init(address="local", num_cpus=1, _temp_dir=os.environ["SHORT"], **quiet)
        search("third")
        print(ray.is_initialized())
        ray.shutdown()
    """
    long = tmp_path / "a-folder-for-temporary-files"
    long.mkdir()
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), write_space(tmp_path), str(tmp_path)],
        env=machine.environment(TMPDIR=str(long), HOME=str(tmp_path / "home"), SHORT=str(machine.temporary / "ray")),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "1 the record cannot be written: No space left on device"
    assert said[2].startswith("1 5 trials in a row failed with: InputError: optimizer 'nothing' is unknown")
    assert said[4].endswith("call ray.shutdown() before tunelab.search()")
    assert said[1] == said[3] == said[5] == "True True True True True True"
    assert said[6] == "True"
    assert len(list(read_journal(tmp_path / "full" / "journal.jsonl"))) == 10
    trials = load(tmp_path / "fails").list_trials()
    assert [trial.status for trial in trials] == [TrialStatus.FAILED] * 5
    with pytest.raises(InputError, match="5 failed"):
        load(tmp_path / "fails").best()
    machine.assert_nothing_runs()
    assert list(long.glob("tunelab-*")) == []
