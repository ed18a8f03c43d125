from __future__ import annotations

import json
import os
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from tunelab.stores import trees as trees_module
from tunelab.stores.store import Store, StoreError
from tunelab.stores.trees import MANIFEST, Tree, files_below


def write(folder: Path, **files: str) -> list[str]:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return [name.replace("__", "/") for name in files]


def read(store: Store) -> Tree:
    tree = Tree(store)
    assert tree.read()
    return tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "folder"


def test_a_folder_comes_back_as_it_was(store: Store, folder: Path, tmp_path: Path) -> None:
    names = write(folder, a="1", b__c="22", empty="")
    Tree(store).push(folder, names)
    assert read(store).pull(tmp_path / "back") == []
    assert {name: (tmp_path / "back" / name).read_text() for name in names} == {"a": "1", "b/c": "22", "empty": ""}
    assert sorted(files_below(tmp_path / "back")) == sorted(names)


def test_equal_files_are_sent_once_and_unchanged_ones_not_again(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    upload = Store.upload
    monkeypatch.setattr(Store, "upload", lambda self, name, *more: (sent.append(name), upload(self, name, *more)))
    tree = Tree(store)
    tree.push(folder, write(folder, best="same", last="same"))
    assert len(sent) == 1
    version = tree.version
    tree.push(folder, ["best", "last"])
    assert (len(sent), tree.version) == (1, version)
    write(folder, last="new")
    (folder / "best").rename(folder / "previous")
    tree.push(folder, ["last", "previous"], gone=lambda name: True)
    assert len(sent) == 2, "the previous one is there under another name"
    assert read(store).files.keys() == {"last", "previous"}
    assert len(store.names()) == 3


def test_a_file_that_changes_within_one_tick_of_the_clock_is_sent_again(store: Store, folder: Path) -> None:
    """Its size and time are as before; but they were too new to be trusted."""
    tree = Tree(store)
    write(folder, a="one")
    now = time.time_ns() + 10**12  # whatever this test takes
    os.utime(folder / "a", ns=(now, now))
    tree.push(folder, ["a"])
    with (folder / "a").open("r+") as file:
        file.write("two")
    os.utime(folder / "a", ns=(now, now))
    tree.push(folder, ["a"])
    assert store.read(tree.files["a"].object) == b"two"


def test_a_file_that_has_not_changed_for_long_is_not_read_again(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(store)
    write(folder, a="one")
    os.utime(folder / "a", ns=(10**18, 10**18))
    tree.push(folder, ["a"])
    monkeypatch.setattr(trees_module, "digest", Mock(side_effect=AssertionError("it was read")))
    tree.push(folder, ["a"])


def test_a_half_sent_folder_is_the_one_from_before(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write(folder, last="old", more="old too")
    Tree(store).push(folder, names)
    write(folder, last="new", more="new too")
    tree = read(store)
    monkeypatch.setattr(tree, "_write", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tree.push(folder, names)
    assert len(store.names()) == 5, "both were sent"
    assert read(store).pull(tmp_path / "back") == []
    assert (tmp_path / "back" / "last").read_text() == "old"


def test_what_was_sent_and_never_named_is_tidied_away(store: Store, folder: Path) -> None:
    tree = Tree(store)
    tree.push(folder, write(folder, a="1"))
    store.write("b.0123456789abcdef.pt", b"half")
    tree.tidy()
    assert store.names().keys() == {MANIFEST, *(entry.object for entry in tree.files.values())}


@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_file_that_is_not_as_the_manifest_says_is_left_out(
    store: Store, folder: Path, tmp_path: Path, how: str
) -> None:
    tree = Tree(store)
    tree.push(folder, write(folder, a="123", b="456"))
    name = tree.files["a"].object
    store.remove(name) if how == "gone" else store.write(name, b"12" if how == "cut" else b"124")
    assert read(store).pull(tmp_path / "back") == ["a"]
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["b"]


def test_a_manifest_that_changes_meanwhile_is_read_again(store: Store, folder: Path, tmp_path: Path) -> None:
    tree = Tree(store)
    tree.push(folder, write(folder, a="old"))
    reader = read(store)
    write(folder, a="newer")
    tree.push(folder, ["a"])
    assert reader.pull(tmp_path / "back") == []
    assert (tmp_path / "back" / "a").read_text() == "newer"


def test_plain_trees_keep_the_names_of_their_files(store: Store, folder: Path) -> None:
    tree = Tree(store, plain=True)
    tree.push(folder, write(folder, report__a="x", copy="x"))
    assert store.names().keys() == {MANIFEST, "report/a", "copy"}


def test_a_manifest_of_somebody_else_leads_nowhere(store: Store, folder: Path, tmp_path: Path) -> None:
    tree = Tree(store)
    tree.push(folder, write(folder, a="1"))
    content = json.loads(store.read(MANIFEST) or b"")
    entry = content["files"]["a"]
    for name in ("../x", "/tmp/x", "b/../../x", ".hidden", "b//c", "", "b\\c", "b\nc"):
        content["files"][name] = entry
    content["files"]["d"] = {**entry, "object": "../../secret"}
    store.write(MANIFEST, json.dumps(content).encode())
    assert read(store).files.keys() == {"a"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": 2, "files": {}}',
        '{"format": 1}',
        '{"format": 1, "files": []}',
        '{"format": 1, "files": {"a": {"object": "a", "size": -1, "sha256": ""}}}',
        '{"format": 1, "files": {"a": 3}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_manifest_is_one_line(store: Store, content: str) -> None:
    store.write(MANIFEST, content.encode())
    with pytest.raises(StoreError, match=r"manifest\.json is damaged") as told:
        Tree(store).read()
    assert len(str(told.value).splitlines()) == 1


def test_links_and_what_is_half_written_stay_here(folder: Path, tmp_path: Path) -> None:
    write(folder, a="1", lock="2", b__last_pt="3")
    (folder / "b" / "last.pt.tmp").write_text("half")
    (folder / ".a-xyz").write_text("half")
    (folder / "link").symlink_to(tmp_path)
    (folder / "b" / "link").symlink_to(folder / "a")
    (folder / "trials").mkdir()
    (folder / "trials" / "c").write_text("4")
    assert sorted(files_below(folder, ["trials"])) == ["a", "b/last_pt"]
