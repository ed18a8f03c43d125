"""Images in folders, one per class: `folder:PATH`, with or without train/val/test folders."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunelab.config import DataConfig
from tunelab.data.decode import FileImages, Header, read_headers
from tunelab.data.raw import Found, Meter, Raw
from tunelab.errors import InputError

_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}  # beside hidden files; what systems leave in folders of images


@dataclass(frozen=True)
class _File:
    path: str
    bytes: int
    mtime: int


_Classes = Mapping[str, list[_File]]


def find(config: DataConfig, path: str) -> Found:
    """The images below `path`. Classes are the sorted names of the folders; deeper folders belong to their class.

    Hidden files and what systems leave behind are passed over. A folder that holds a `train` folder with class folders
    is divided already; otherwise its sub-folders are the classes.

    Raises:
        InputError: there is no such folder, or it has no images, no class folders, one class, or a class without files.
    """
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise InputError(f"there is no folder {root} (data set {config.name!r})")
    layout = _layout(root)
    splits = {split: _classes(folder) for split, folder in layout.items()}
    names = tuple(splits["train"])
    if len(names) < 2:
        raise InputError(f"{layout['train']} has a single class folder ({names[0]!r}); at least 2 are needed")
    for split, classes in splits.items():
        if tuple(classes) != names:
            odd = sorted(set(classes).symmetric_difference(names))[0]
            raise InputError(f"{layout[split]} and {layout['train']} differ in their classes: only one has {odd!r}")
    key = {"path": str(root), "listing": _digest(root, splits), "skip_unreadable": config.skip_unreadable}
    return Found(key, tuple(splits), lambda meter: _read(splits, config, meter))


def _layout(root: Path) -> dict[str, Path]:
    folders = _sub_folders(root)
    if not folders:
        raise InputError(f"{root} has no class folders; it needs one folder of images per class")
    if "train" not in folders or not _sub_folders(root / "train"):
        if set(folders) <= set(_SPLIT_NAMES) and any(_sub_folders(root / name) for name in folders):
            raise InputError(f"{root} has {', '.join(folders)} but no train folder with class folders")
        return {"train": root}
    layout: dict[str, Path] = {}
    for name in folders:
        if name not in _SPLIT_NAMES:
            raise InputError(f"{root} has a train folder, so {name!r} must be one of {', '.join(_SPLIT_NAMES)} too")
        if _SPLIT_NAMES[name] in layout:
            raise InputError(f"{root} has two folders for val: {layout['val'].name!r} and {name!r}")
        layout[_SPLIT_NAMES[name]] = root / name
    return {split: layout[split] for split in ("train", "val", "test") if split in layout}


def _sub_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if not _is_clutter(entry.name) and _is_folder(entry))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, or InputError if it is closed to this user."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _classes(folder: Path) -> _Classes:
    names = _sub_folders(folder)
    if not names:
        raise InputError(f"{folder} has no class folders; it needs one folder of images per class")
    classes = {name: sorted(_files(folder / name, set()), key=lambda file: file.path) for name in names}
    if not any(classes.values()):
        raise InputError(f"{folder} has class folders but not one image")
    for name, files in classes.items():
        if not files:
            raise InputError(f"the class folder {folder / name} has no images")
    return classes


def files_below(folder: Path) -> list[str]:
    """All files below `folder`, in order, but for those that are passed over in a folder of a class too."""
    return sorted(file.path for file in _files(folder, set()))


def _files(folder: Path, seen: set[tuple[int, int]]) -> Iterator[_File]:
    """All files below `folder`; links are followed, each folder once."""
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    for entry in _entries(folder):
        if _is_clutter(entry.name):
            continue
        if _is_folder(entry):
            yield from _files(folder / entry.name, seen)
            continue
        try:
            stat = entry.stat()
        except OSError:  # a link to nowhere, or to itself: named as unreadable when it is decoded
            stat = entry.stat(follow_symlinks=False)
        yield _File(entry.path, stat.st_size, stat.st_mtime_ns)


def _digest(root: Path, splits: Mapping[str, _Classes]) -> str:
    whole = hashlib.sha256()
    for split, classes in splits.items():
        for files in classes.values():
            for file in files:
                line = f"{split}\0{file.path[len(str(root)) :]}\0{file.bytes}\0{file.mtime}\n"
                whole.update(line.encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _read(splits: Mapping[str, _Classes], config: DataConfig, meter: Meter) -> Raw:
    paths = {split: [file.path for files in classes.values() for file in files] for split, classes in splits.items()}
    labels = {
        split: np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in classes.values()])
        for split, classes in splits.items()
    }
    meter.start(sum(map(len, paths.values())), passes=2)
    skipped: list[str] = []
    headers = {split: read_headers(some, config.skip_unreadable, skipped, meter) for split, some in paths.items()}
    known = [header for some in headers.values() for header in some if header is not None]
    if not known:
        raise InputError(f"{config.name}: none of the {len(skipped)} files is an image that can be read")
    size, notes = _size(known, config.image_size)
    grey = all(header.grey for header in known)
    images = {}
    for split, some in headers.items():
        kept = [row for row, header in enumerate(some) if header is not None]
        images[split] = FileImages(
            [paths[split][row] for row in kept], labels[split][kept], size, grey, config.skip_unreadable, skipped
        )
    return Raw(tuple(splits["train"]), size, 1 if grey else 3, images, notes, skipped)


def _size(headers: list[Header], image_size: int | None) -> tuple[tuple[int, int], list[str]]:
    """The size (H, W) to decode to, and a note if that resizes anything."""
    sizes = Counter(header.size for header in headers)
    common = [f"{width}x{height}" for (height, width), _ in sizes.most_common(3)]
    if image_size is None:
        if len(sizes) > 1:
            more = ", ..." if len(sizes) > 3 else ""
            raise InputError(
                f"the images have {len(sizes)} different sizes ({', '.join(common)}{more}, the most common first); "
                "give --image-size to resize them"
            )
        return next(iter(sizes)), []
    if set(sizes) == {(image_size, image_size)}:
        return (image_size, image_size), []
    what = f"images of {common[0]}" if len(sizes) == 1 else f"images of {len(sizes)} sizes"
    return (image_size, image_size), [f"{what} resized to {image_size}x{image_size}"]
