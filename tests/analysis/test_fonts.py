"""Names in any script are drawn, or numbered; never boxes: matplotlib warns of those, and warnings are errors here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image
from tunelab.analysis import fonts
from tunelab.analysis.fonts import OWN, cover, glyphs, plain, strings
from tunelab.analysis.gallery import draw

CAT = "猫"
CLASSES = [
    {"class": name, "images": 9, "accuracy": 0.5, "low": 0.2, "high": 0.8}
    for name in ("кошка", CAT, "$5 or $6", "line\nbreak", "<b>", "gr\x00een")
]


@pytest.fixture
def font_with_a_cat(tmp_path: Path) -> Iterator[str]:
    """A font file of the family "Cats" that has one Chinese character, known to matplotlib while the test runs."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (500, 700), (500, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(CAT): "cat"})
    builder.setupGlyf({".notdef": pen.glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "cat": (600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "cats.ttf"
    builder.save(path)
    before = list(fontManager.ttflist)
    fontManager.addfont(path)
    yield str(path)
    fontManager.ttflist[:] = before


def test_latin_and_cyrillic_need_no_other_font() -> None:
    assert cover(["plain", "кошка", "Ελλάδα", "å"], {}) == ([OWN], {})


def test_a_font_that_has_the_character_is_asked_for(font_with_a_cat: str) -> None:
    fallbacks = {"Elsewhere": "nowhere.ttf", "Cats": font_with_a_cat, "More": font_with_a_cat}
    assert cover([CAT, "cat"], fallbacks) == ([OWN, "Cats"], {})
    assert cover([CAT + "狗", CAT, "狗"], fallbacks) == ([OWN, "Cats"], {CAT + "狗": "[1]", "狗": "[2]"})


def test_without_one_the_text_is_numbered() -> None:
    assert cover(["cat", CAT, "кошка", "дом" + CAT, CAT], {}) == ([OWN], {CAT: "[1]", "дом" + CAT: "[2]"})


@pytest.mark.parametrize("there", [True, False])
def test_pictures_have_no_boxes(
    there: bool, font_with_a_cat: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fonts, "installed", lambda: {"Cats": font_with_a_cat} if there else {})
    path = tmp_path / "classes.png"
    legend = draw("classes", CLASSES, path, f"{CAT}: a title")
    assert legend == ({} if there else {CAT: "[1]", f"{CAT}: a title": "[2]"})
    with Image.open(path) as picture:
        assert picture.format == "PNG"


def test_the_installed_fonts_are_found_and_leave_out_pictures() -> None:
    found = fonts.installed()
    assert Path(found[OWN]).exists()
    assert not any("last resort" in family.lower() or "emoji" in family.lower() for family in found)


def test_what_is_no_font_has_no_characters(tmp_path: Path) -> None:
    file = tmp_path / "broken.ttf"
    file.write_bytes(b"\x00\x01\x00\x00 not a font")
    assert glyphs(str(file)) == glyphs(str(tmp_path / "nowhere.ttf")) == frozenset()


def test_texts_are_taken_literally() -> None:
    assert plain("a $x$ b\n\x00") == r"a \$x\$ b  "
    assert strings([{"a": "x", "b": 1}, {"a": "x", "c": "y"}]) == ["x", "y"]
