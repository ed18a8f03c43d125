"""Which fonts draw a text: names of classes and folders come in any script, and a box says nothing.

DejaVu Sans, which comes with matplotlib, has Latin, Greek, Cyrillic and more. For other characters the installed fonts
are looked through. A text that none of them covers is replaced by a number, and what it stands for is told apart from
the picture, where the reader's own fonts show it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

OWN = "DejaVu Sans"
_NOT_FOR_TEXT = ("last resort", "lastresort", "emoji", "symbol")  # they have boxes, or pictures, for everything


def cover(texts: Iterable[str], fonts: Mapping[str, str] | None = None) -> tuple[list[str], dict[str, str]]:
    """The families that draw these texts, OWN first, and for each text that they cannot draw a number in brackets.

    Args:
        texts: what is to be drawn.
        fonts: files by family, in the order of preference; None: those that are installed.
    """
    texts = list(dict.fromkeys(texts))
    missing = {char for text in texts for char in text if char.isprintable()} - glyphs(_own_file())
    families = [OWN]
    if missing:
        for family, file in (installed() if fonts is None else fonts).items():
            if not missing:
                break
            found = missing & glyphs(file)
            if found:
                families.append(family)
                missing -= found
    unread = [text for text in texts if missing & set(text)]
    return families, {text: f"[{number}]" for number, text in enumerate(unread, start=1)}


def plain(text: str) -> str:
    """A text as matplotlib takes it literally: no formula between dollar signs, nothing that cannot be printed."""
    return "".join(char if char.isprintable() else " " for char in text).replace("$", r"\$")


@functools.lru_cache(maxsize=512)
def glyphs(file: str) -> frozenset[str]:
    """The characters that a font file has; none if it cannot be read or is made of pictures."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (RuntimeError, OSError, ValueError):
        return frozenset()


@functools.lru_cache(maxsize=1)
def installed() -> dict[str, str]:
    """The files of the installed fonts by family: upright ones of normal weight, without serifs first."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {Path(entry.fname).resolve() for entry in fontManager.ttflist}
    for file in sorted(findSystemFonts()):
        if Path(file).resolve() not in known:  # installed after matplotlib has made its list
            _add(file)
    upright = [
        entry
        for entry in fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
        if not any(word in entry.name.lower() for word in _NOT_FOR_TEXT)
    ]
    order = sorted(upright, key=lambda entry: ("sans" not in entry.name.lower(), entry.name, entry.fname))
    found: dict[str, str] = {}
    for entry in order:
        found.setdefault(entry.name, entry.fname)
    return found


def _add(file: str) -> None:
    """Makes a font known to matplotlib; one that it cannot read stays unknown."""
    from matplotlib.font_manager import fontManager

    try:
        fontManager.addfont(file)
    except (RuntimeError, OSError, ValueError, KeyError, TypeError):
        return


def _own_file() -> str:
    from matplotlib import get_data_path

    return str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def strings(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """All texts in rows of plain data, each once."""
    return list(dict.fromkeys(value for row in rows for value in row.values() if isinstance(value, str)))
