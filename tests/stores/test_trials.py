from __future__ import annotations

from pathlib import Path

import pytest

from tunelab.stores.store import Store, StoreError
from tunelab.stores.trials import TrialCopy, is_marked


def train(folder: Path, epoch: int) -> None:
    """What an epoch leaves: checkpoints, as three files or two names of one, and a file that grows."""
    checkpoint, events = folder / "checkpoint", folder / "events"
    for one in (checkpoint, events):
        one.mkdir(parents=True, exist_ok=True)
    last = checkpoint / "last.pt"
    if last.exists():
        last.replace(checkpoint / "previous.pt")
    last.write_text(f"after epoch {epoch}")
    if epoch % 2:
        (checkpoint / "best.pt").write_text(last.read_text())
    with (events / "events.out.1").open("a") as file:
        file.write(f"{epoch} ")


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here" / "0007"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there" / "0007"


def test_a_trial_goes_on_wherever_it_is_newest(store: Store, here: Path, there: Path) -> None:
    for epoch in (1, 2, 3):
        train(here, epoch)
        TrialCopy(store, here).push()
    assert TrialCopy(store, there).fetch() == []
    assert content(there) == content(here)
    for epoch in (4, 5):
        train(there, epoch)
    TrialCopy(store, there).push()
    assert TrialCopy(store, here).fetch() == []
    assert content(here) == content(there)
    assert content(here)["checkpoint/last.pt"] == "after epoch 5"


def test_what_is_here_and_was_not_sent_yet_is_not_replaced(store: Store, here: Path) -> None:
    train(here, 1)
    TrialCopy(store, here).push()
    train(here, 2)
    assert TrialCopy(store, here).fetch() == []
    assert content(here)["checkpoint/last.pt"] == "after epoch 2"


def test_what_another_machine_has_done_since_counts(store: Store, here: Path, there: Path) -> None:
    train(here, 1)
    TrialCopy(store, here).push()
    TrialCopy(store, there).fetch()
    train(here, 2)
    train(here, 3)
    train(there, 2)
    TrialCopy(store, there).push()
    TrialCopy(store, here).bring_together()
    assert content(here)["checkpoint/last.pt"] == "after epoch 2"
    assert content(here) == content(there)


def test_checkpoints_replace_each_other_and_other_files_join(store: Store, here: Path, there: Path) -> None:
    train(here, 1)
    train(here, 2)
    TrialCopy(store, here).push()
    (here / "checkpoint" / "previous.pt").unlink()
    (here / "events" / "events.out.1").unlink()
    (here / "health.json").write_text("{}")
    TrialCopy(store, here).push()
    TrialCopy(store, there).fetch()
    assert content(there).keys() == {"checkpoint/last.pt", "checkpoint/best.pt", "events/events.out.1", "health.json"}


def test_a_trial_that_keeps_nothing_keeps_nothing_in_the_store(store: Store, here: Path) -> None:
    train(here, 1)
    copy = TrialCopy(store, here)
    copy.push()
    TrialCopy(store, here).drop_checkpoints()
    assert not any("checkpoint" in name for name in store.names())
    assert any("events" in name for name in store.names())
    assert is_marked(here)


def test_a_killed_copying_leaves_the_copy_as_it_was(
    store: Store, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(here, 1)
    TrialCopy(store, here).push()
    before = content(here)
    train(here, 2)
    write = Store.write

    def fail(self: Store, name: str, content: bytes) -> None:
        if name.startswith("events"):
            raise StoreError("killed")
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", fail)
        with pytest.raises(StoreError):
            TrialCopy(store, here).push()
    assert len(store.names()) > len(before), "something was sent"
    TrialCopy(store, there).fetch()
    assert content(there) == before
    assert len(store.names()) == 3, "what was sent in vain is gone: a checkpoint under two names, events, the manifest"


def test_a_copy_that_lacks_a_file_says_so(store: Store, here: Path, there: Path) -> None:
    train(here, 1)
    TrialCopy(store, here).push()
    for name in store.names():
        if "events" in name:
            store.remove(name)
    assert TrialCopy(store, there).fetch() == ["events/events.out.1"]
    assert not is_marked(there)


def test_a_trial_that_nobody_has_begun_is_fetched_as_nothing(store: Store, here: Path) -> None:
    assert TrialCopy(store, here).fetch() == []
    assert not here.exists()
    TrialCopy(store, here).bring_together()
    assert store.names() == {}
