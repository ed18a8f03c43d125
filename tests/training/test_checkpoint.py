from __future__ import annotations

import dataclasses
import fcntl
import os
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from tunelab.errors import InputError
from tunelab.records import EpochMetrics
from tunelab.training import checkpoint
from tunelab.training.checkpoint import Checkpoint, CheckpointError, load, load_model, save
from tunelab.training.loop import Trainer


def state(epoch: int, fill: float = 1.0, size: int = 10) -> Checkpoint:
    history = [EpochMetrics(i + 1, 0.1 + 0.2, 0.5, None, None, 1 / 3, 1.0, 10.0, 100.0) for i in range(epoch)]
    return Checkpoint("abc", "def", 7, "data", history, {"weight": torch.full((size,), fill)}, {"param_groups": [0.1]})


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path, state(2), best=False)
    found = load(tmp_path / "last.pt")
    assert found.history == state(2).history
    assert torch.equal(found.model["weight"], state(2).model["weight"])
    assert (found.config_id, found.arch_id, found.seed, found.data) == ("abc", "def", 7, "data")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_of_format_1_is_read(tmp_path):
    """It had the history as a list of dictionaries."""
    history = [metrics.to_json() for metrics in state(3).history]
    plain = {"format": 1, "config_id": "abc", "arch_id": "def", "seed": 7, "data": "data", "history": history}
    torch.save({**plain, "model": {"weight": torch.ones(10)}, "optimizer": {}}, tmp_path / "last.pt")
    assert load(tmp_path / "last.pt").history == state(3).history


def test_a_long_history_takes_little_room(tmp_path):
    """The number of epochs is the number of times that it is written."""
    sizes = []
    for epochs in (0, 1000):
        save(tmp_path, state(epochs), best=False)
        sizes.append((tmp_path / "last.pt").stat().st_size)
    numbers = len(dataclasses.fields(EpochMetrics))
    assert sizes[1] - sizes[0] < 1000 * (8 * numbers + 1)
    assert load(tmp_path / "last.pt").history == state(1000).history


def test_best_is_a_second_name_and_stays_when_last_goes_on(tmp_path):
    save(tmp_path, state(1), best=True)
    assert (tmp_path / "best.pt").samefile(tmp_path / "last.pt")
    save(tmp_path, state(2), best=False)
    assert len(load(tmp_path / "best.pt").history) == 1
    assert len(load(tmp_path / "last.pt").history) == 2


def test_best_is_a_copy_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    save(tmp_path, state(1), best=True)
    assert not (tmp_path / "best.pt").samefile(tmp_path / "last.pt")
    assert (tmp_path / "best.pt").read_bytes() == (tmp_path / "last.pt").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, state(1), best=True)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, state(2), best=True)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt"]
    assert len(load(tmp_path / "last.pt").history) == 1


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    save(tmp_path, state(1, fill=1.5), best=False)
    path = tmp_path / "last.pt"
    good = path.read_bytes()
    draw = random.Random(0)
    noticed = 0
    for _ in range(300):
        at = draw.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << draw.randrange(8))]) + good[at + 1 :])
        try:
            found = load(path)
        except CheckpointError:
            noticed += 1
        else:
            assert found.history == state(1).history
            assert torch.equal(found.model["weight"], torch.full((10,), 1.5))
    assert noticed > 50


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_noticed(tmp_path, share):
    save(tmp_path, state(1), best=False)
    path = tmp_path / "last.pt"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read"):
        load(path)


def test_a_file_that_is_something_else_is_refused_without_running_it(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="format is 99"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError):
        load(path)
    torch.save({"format": 1, "model": _Hostile(tmp_path / "ran")}, path)
    with pytest.raises(CheckpointError):
        load(path)
    path.write_bytes(pickle.dumps({"format": 1}))
    with pytest.raises(CheckpointError):
        load(path)
    assert not (tmp_path / "ran").exists()


class _Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


WRITER = """
import os, signal, sys
from pathlib import Path
import torch
from tunelab.records import EpochMetrics
from tunelab.training import checkpoint

torch.set_num_threads(1)


def save(folder, epoch):
    metrics = EpochMetrics(epoch, 1.0, 0.5, None, None, 0.1, 1.0, 1.0, 1.0)
    model = {"weight": torch.full((20_000,), float(epoch))}
    state = checkpoint.Checkpoint("abc", "def", 7, "data", [metrics], model, {})
    checkpoint.save(folder, state, best=epoch != 2)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(file, content):
    file.write(content[: len(content) // 2])
    file.flush()
    die()


def arm(moment):
    counted = [0]

    def watched(call):
        def calling(*arguments):
            for before in (True, False):
                counted[0] += 1
                if counted[0] == moment:
                    die()
                result = call(*arguments) if before else result
            return result

        return calling

    if moment == 0:
        checkpoint._write = half_written
    os.fsync = watched(os.fsync)
    Path.hardlink_to = watched(Path.hardlink_to)
    Path.replace = watched(Path.replace)


def no_links(path, target):
    raise PermissionError(1, "Operation not permitted")


if "no-links" in sys.argv:
    Path.hardlink_to = no_links
for moment in range(100):
    folder = Path(sys.argv[1]) / f"{moment:02d}"
    child = os.fork()
    if child == 0:
        save(folder, 1)
        save(folder, 2)
        arm(moment)
        save(folder, 3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], [(1, 2, 1), (3, 2, 1), (3, 2, 2), (3, 3, 2)]),
        (["no-links"], [(1, 2, 1), (3, 2, 1), (3, 0, 2), (3, 3, 2)]),
    ],
)
def test_kill_9_at_any_moment_of_a_save_leaves_whole_checkpoints(tmp_path, more, expected):
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), *more], check=True)
    epochs, leftovers = [], 0
    for folder in sorted(tmp_path.iterdir()):
        leftovers += len(list(folder.glob("*.tmp")))
        checkpoint.remove_leftovers(folder)
        assert not list(folder.glob("*.tmp"))
        found = {path.name: load(path) for path in sorted(folder.iterdir())}
        for state_found in found.values():
            epoch = float(state_found.history[-1].epoch)
            assert torch.equal(state_found.model["weight"], torch.full((20_000,), epoch))
        names = ("best.pt", "last.pt", "previous.pt")
        epochs.append(tuple(found[name].history[-1].epoch if name in found else 0 for name in names))
    assert list(dict.fromkeys(epochs)) == expected, "one name after another, and never nothing"
    assert leftovers >= 4


def test_the_checkpoint_before_stays_as_the_previous_one(tmp_path):
    for epoch in (1, 2, 3):
        save(tmp_path, state(epoch), best=epoch == 1)
    found = {path.name: len(load(path).history) for path in tmp_path.iterdir()}
    assert found == {"best.pt": 1, "last.pt": 3, "previous.pt": 2}
    save(tmp_path, state(4), best=False, previous=False)
    assert len(load(tmp_path / "previous.pt").history) == 2, "one that was passed over is not kept as the previous one"


def test_what_an_ended_training_needs_not_keep_is_removed(tmp_path):
    folder = tmp_path / "checkpoint"
    assert checkpoint.discard(folder, previous_only=True), "there is none"
    for epoch in (1, 2):
        save(folder, state(epoch), best=True)
    file = checkpoint.claim(folder)
    assert not checkpoint.discard(folder, previous_only=False)
    assert len(list(folder.iterdir())) == 4, "it is being written"
    file.close()
    assert checkpoint.discard(folder, previous_only=True)
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "last.pt"]
    assert checkpoint.discard(folder, previous_only=False)
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_between_the_names_leaves_none_behind_later(tmp_path):
    """Previous and last are then one file, and the rename of one name of a file to another does nothing."""
    save(tmp_path, state(1), best=True)
    (tmp_path / "previous.pt").hardlink_to(tmp_path / "last.pt")
    save(tmp_path, state(2), best=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt", "previous.pt"]


def test_what_is_still_being_written_is_waited_for_and_not_removed(tmp_path):
    save(tmp_path, state(1), best=True)
    file = checkpoint.claim(tmp_path)
    removing = threading.Thread(target=checkpoint.remove_leftovers, args=(tmp_path,))
    removing.start()
    removing.join(0.2)
    assert removing.is_alive()
    assert (tmp_path / "last.pt.tmp").exists()
    checkpoint.write(tmp_path, file, checkpoint.to_bytes(state(2)), best=False)
    removing.join()
    assert [len(load(tmp_path / name).history) for name in ("best.pt", "last.pt")] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt", "previous.pt"]


def test_a_best_one_that_a_killed_process_did_not_make_the_last_one_stays_whole(tmp_path):
    save(tmp_path, state(2), best=True)
    (tmp_path / "last.pt").replace(tmp_path / "last.pt.tmp")  # one file with two names, as it was killed there
    save(tmp_path, state(1), best=False)
    assert load(tmp_path / "best.pt").history == state(2).history
    assert load(tmp_path / "last.pt").history == state(1).history


def test_two_that_write_at_once_write_in_turn(tmp_path):
    mine, others = checkpoint.claim(tmp_path), []
    mine.write(b"begun")
    mine.flush()
    waiting = threading.Thread(target=lambda: others.append(checkpoint.claim(tmp_path)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert (tmp_path / "last.pt.tmp").read_bytes() == b"begun", "the one that waits cuts nothing off"
    mine.seek(0)
    mine.truncate()
    checkpoint.write(tmp_path, mine, checkpoint.to_bytes(state(2)), best=True)
    waiting.join()
    others[0].write(b"half")
    others[0].flush()
    assert [len(load(tmp_path / name).history) for name in ("best.pt", "last.pt")] == [2, 2], "of another file"
    others[0].truncate(0)
    checkpoint.write(tmp_path, others[0], checkpoint.to_bytes(state(1)), best=False)
    assert [len(load(tmp_path / name).history) for name in ("best.pt", "last.pt")] == [2, 1]


def test_without_locks_leftovers_are_removed_at_once(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    checkpoint.claim(tmp_path).close()
    checkpoint.remove_leftovers(tmp_path)
    save(tmp_path, state(1), best=False)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_load_model_gives_the_trained_network(tmp_path, make_config):
    config = make_config(epochs=1, precision="float32")
    trainer = Trainer(config, folder=tmp_path, device="cpu", telemetry="off")
    trainer.run_epoch()
    images = torch.randn(5, 1, 8, 8)
    trainer.model.eval()
    expected = trainer.model(images)
    model = load_model(config, tmp_path / "checkpoint" / "best.pt", trainer.info)
    assert not model.training
    torch.testing.assert_close(model(images), expected)


def test_load_model_refuses_another_network_or_no_file(tmp_path, make_config):
    trainer = Trainer(make_config(epochs=1), folder=tmp_path, device="cpu", telemetry="off")
    trainer.run_epoch()
    path = tmp_path / "checkpoint" / "last.pt"
    with pytest.raises(InputError, match="holds the network"):
        load_model(make_config(arch={"activation": "silu"}), path, trainer.info)
    with pytest.raises(InputError, match=r"there is no checkpoint .*--keep-weights"):
        load_model(make_config(), tmp_path / "none.pt", trainer.info)


def test_restore_names_what_does_not_fit(make_config):
    config = make_config()
    trainer = Trainer(config, device="cpu", telemetry="off")
    parts = (trainer.model, trainer.optimizer)
    good = checkpoint.capture(config, trainer.info, [], *parts)
    assert checkpoint.restore(good, config, trainer.info, *parts) == []
    with pytest.raises(CheckpointError, match=r"of another seed \(1, not 2\)"):
        checkpoint.restore(good, make_config(seed=2), trainer.info, *parts)
    with pytest.raises(CheckpointError, match="of another configuration"):
        checkpoint.restore(good, make_config(lr=0.01), trainer.info, *parts)
    other = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.restore(good, config, trainer.info, other, torch.optim.SGD(other.parameters(), 0.1))
