"""Images and archives of strangers: cut, flipped, of another kind than their names say, or larger than any memory."""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

if TYPE_CHECKING:
    from tests.fuzz.conftest import Fuzz, World

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
SEARCH = ["search", "SPACE", "--dry-run", "--image-size", "8", "--data"]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG whose header says this size, with hardly any pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rest = b"".join(chunks) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + rest


def kinds() -> dict[str, bytes]:
    """Images of many kinds, by name."""
    random = np.random.default_rng(3)
    colour = Image.fromarray(random.integers(0, 255, (12, 10, 3), dtype=np.uint8))
    grey = colour.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [colour, colour.rotate(90), colour.rotate(180)]
    return {
        "png": _saved(colour, "PNG"),
        "grey": _saved(grey, "PNG"),
        "16 bit": _saved(Image.fromarray(random.integers(0, 65535, (9, 9), dtype=np.uint16)), "PNG"),
        "palette": _saved(colour.convert("P"), "PNG", transparency=0),
        "alpha": _saved(colour.convert("RGBA"), "PNG"),
        "one bit": _saved(grey.convert("1"), "PNG"),
        "jpeg": _saved(colour, "JPEG"),
        "cmyk": _saved(colour.convert("CMYK"), "JPEG"),
        "turned": _saved(colour, "JPEG", exif=exif),
        "gif": _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "apng": _saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "webp": _saved(colour, "WEBP"),
        "tiff": _saved(colour, "TIFF", compression="tiff_deflate"),
        "bmp": _saved(colour, "BMP"),
        "ppm": _saved(colour, "PPM"),
        "float": _saved(Image.fromarray(random.random((9, 9), dtype=np.float32)), "TIFF"),
        "ico": _saved(colour, "ICO"),
        "huge": png_of(50_000, 50_000),
        "endless": png_of(2**31 - 1, 2**31 - 1),
        "none": png_of(0, 0),
        "empty": b"",
        "text": b"this is no image\n",
        "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(marker) (w) file closefile\n",
    }


@pytest.mark.slow
def test_images_in_folders_and_for_models(world: World, fuzz: type[Fuzz]) -> None:
    some = kinds()

    def case(data: st.DataObject) -> None:
        content = some[data.draw(st.sampled_from(sorted(some)))]
        if data.draw(st.booleans()):
            content = data.draw(fuzz.spoilt_bytes(content))
        suffix = data.draw(st.sampled_from([".png", ".jpg", ".gif", ".webp", ".tif", ".txt", "", ".npz", ".PNG"]))
        more = data.draw(st.sampled_from([[], ["--skip-unreadable"]]))
        if data.draw(st.integers(0, 3)):
            file = world.folder / f"image{suffix}"
            file.write_bytes(content)
            world.ask("predict", str(world.model), str(file), *more).check()
        else:
            folder = world.fresh(world.images)
            (folder / "cat" / f"new{suffix}").write_bytes(content)
            words = [str(world.space) if word == "SPACE" else word for word in SEARCH]
            world.ask(*words, f"folder:{folder}", *more).check()
            shutil.rmtree(folder)

    fuzz.run(130, case)


def _archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _npy(array: np.ndarray, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=pickled)
    return stream.getvalue()


def _head(shape: str, kind: str = "|u1", length: int | None = None) -> bytes:
    """The begin of an array that says so much of itself, and no more."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text) if length is None else length) + text


@pytest.mark.slow
def test_archives(world: World, fuzz: type[Fuzz]) -> None:
    images = np.arange(30 * 64, dtype=np.uint8).reshape(30, 8, 8)
    good, labels = _npy(images), _npy(np.arange(30) % 3)
    some = {
        "right": _archive(**{"images.npy": good, "labels.npy": labels}),
        "objects": _archive(**{"images.npy": _npy(np.array([{}, 1], dtype=object), True), "labels.npy": labels}),
        "huge": _archive(**{"images.npy": _head("(10000000000, 32, 32, 3)"), "labels.npy": labels}),
        "huge labels": _archive(**{"images.npy": good, "labels.npy": _head("(10000000000,)", "<i8")}),
        "long head": _archive(**{"images.npy": _head("(30, 8, 8)", length=2**32 - 1), "labels.npy": labels}),
        "negative": _archive(**{"images.npy": _head("(-1, 8, 8)"), "labels.npy": labels}),
        "odd shape": _archive(**{"images.npy": _head("(True, 8.5, 'x')"), "labels.npy": labels}),
        "odd type": _archive(**{"images.npy": _head("(30, 8, 8)", "O"), "labels.npy": _head("(30,)", "<m8[as]")}),
        "classes": _archive(**{"images.npy": good, "labels.npy": labels, "classes.npy": _head("(9999999999,)", "<U9")}),
        "outside": _archive(**{"../../images.npy": good, "/labels.npy": labels}),
        "no archive": b"PK\x03\x04 and nothing more",
        "empty": b"",
        "array": good,
    }

    def case(data: st.DataObject) -> None:
        content = some[data.draw(st.sampled_from(sorted(some)))]
        if data.draw(st.booleans()):
            content = data.draw(fuzz.spoilt_bytes(content))
        file: Path = world.folder / "data.npz"
        file.write_bytes(content)
        words = [str(world.space) if word == "SPACE" else word for word in SEARCH]
        world.ask(*words, f"npz:{file}").check()

    fuzz.run(110, case)
