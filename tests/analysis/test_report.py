from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from tunelab.analysis import report
from tunelab.analysis.page import cell, table
from tunelab.analysis.rank import summary
from tunelab.analysis.report import write_report

from tunelab.errors import InputError
from tunelab.study import Study

if TYPE_CHECKING:
    from tests.analysis.conftest import MakeSearch
    from tests.conftest import MakeStudy

COUNTS = {"configurations": 14, "val_images": 500}
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a page is made of; wrong nesting is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each element of a kind."""
        return [found for name, found in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(whole_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a whole study."""
    written = write_report(whole_study, tmp_path_factory.mktemp("report"))
    return Page(Path(written["page"]).read_text(encoding="utf-8"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plots are blank: tests/analysis/test_gallery.py draws them."""

    def blank(name: str, rows: object, path: Path, title: str) -> dict[str, str]:
        Image.new("RGB", (8, 8)).save(path, "PNG")
        return {}

    monkeypatch.setattr(report, "draw", blank)


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert page.all("script") == page.all("iframe") == page.all("object") == []
    for tag, found in page.tags:
        assert not any(name.startswith("on") for name in found), tag
        for name in ("src", "href"):
            assert found.get(name, "data:").startswith(("data:", "#")), (tag, found)
    assert all("http" not in found.get("content", "") for found in page.all("meta"))


def test_names_are_texts_and_no_markup(page: Page) -> None:
    assert "имя <img src=x> & 猫" in page.text
    assert "<script>alert(1)</script>" in page.text  # a class
    assert all(found["src"].startswith("data:image/png;base64,") for found in page.all("img"))


def test_it_can_be_read_without_eyes_or_a_mouse(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [len(page.all(tag)) for tag in ("main", "header", "nav", "footer")] == [1, 1, 1, 1]
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(set(ids)) == len(ids)
    targets = [found["href"][1:] for found in page.all("a") if found["href"].startswith("#")]
    assert targets[0] == "content"
    assert set(targets) <= set(ids)
    assert {found["aria-labelledby"] for found in page.all("section")} <= set(ids)
    assert page.all("html") == [{"lang": "en"}]
    for picture in page.all("img"):
        assert len(picture["alt"]) > 30
        assert any(char.isdigit() for char in picture["alt"])
        assert int(picture["width"]) > 0
    assert len(page.all("caption")) == len(page.all("table")) > 10
    assert all(found["scope"] in ("col", "row") for found in page.all("th"))
    regions = [found for found in page.all("div") if found.get("class") == "scroll"]
    assert all(found["tabindex"] == "0" and found["aria-label"] for found in regions)


def test_the_retraining_is_told_with_its_interval_and_ensemble(page: Page) -> None:
    assert "Trained in full, 9 epochs with 2 seeds, trial 0 has 60.0% ± 1.0 on test images." in page.text
    assert "55.0 to 65.0%" in page.text
    assert "71.0%" in page.text


@pytest.mark.usefixtures("no_pictures")
def test_what_new_images_will_say(make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_search(9)
    told = {**summary(study, 3), "new_data": {"low": 0.512, "high": 0.587, "optimism": 0.021} | COUNTS}
    monkeypatch.setattr(report, "summary", lambda _study, _top: told)
    text = Page(Path(write_report(study)["page"]).read_text(encoding="utf-8")).text
    assert "51.2 to 58.7% is expected" in text
    assert "2.1 percentage points lucky" in text


def test_every_plot_brings_its_data(page: Page) -> None:
    links = [found for found in page.all("a") if "download" in found]
    assert len(links) == len(page.all("img")) == len(page.all("figure")) >= 13
    for link in links:
        kind, _, content = link["href"].partition(",")
        assert kind == "data:text/csv;charset=utf-8;base64"
        rows = list(csv.DictReader(io.StringIO(base64.b64decode(content).decode())))
        assert rows
        assert not any(name.startswith("_") for name in rows[0])


@pytest.mark.usefixtures("no_pictures")
def test_the_files_beside_the_page(make_search: MakeSearch, tmp_path: Path) -> None:
    study = make_search(12)
    out = tmp_path / "out" / "отчёт"
    out.mkdir(parents=True)
    (out / "confusion.png").write_bytes(b"of an earlier report")
    (out / "mine.txt").write_text("not tunelab's")
    written = write_report(study, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [Path(file).name for file in written["files"]] + ["mine.txt"]
    )
    assert written["page"] == str(out / "index.html") == written["files"][-1]
    assert {"history.png", "history.csv", "slices.png"} <= {Path(file).name for file in written["files"]}
    assert "trained in full" in written["left_out"]["Which classes are taken for which"]
    assert json.loads(json.dumps(written)) == written


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("trials", [0, 1, 3])
def test_small_studies_have_a_page(trials: int, make_search: MakeSearch) -> None:
    written = write_report(make_search(trials))
    text = Page(Path(written["page"]).read_text(encoding="utf-8")).text
    assert f"{trials} of {trials} configurations" in text
    assert ("No trial has run its full length yet." in text) is (trials == 0)


@pytest.mark.usefixtures("no_pictures")
def test_a_running_study_is_reported_as_it_stands(make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_search(12, running=True)  # its record ends with half a line
    assert "are paused" in Path(write_report(study)["page"]).read_text(encoding="utf-8")
    monkeypatch.setattr(type(study), "running", True)
    text = Path(write_report(study)["page"]).read_text(encoding="utf-8")
    assert "The search is running" in text
    assert "are paused" not in text


@pytest.mark.usefixtures("no_pictures")
def test_a_report_that_breaks_off_leaves_the_old_one(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])])
    write_report(study)
    before = {path.name: path.read_bytes() for path in (study.path / "report").iterdir()}

    def breaks(content: dict[str, Any]) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "build", breaks)
    with pytest.raises(KeyboardInterrupt):
        write_report(study)
    assert {path.name: path.read_bytes() for path in (study.path / "report").iterdir()} == before


def test_a_folder_that_cannot_be_written_is_one_line(make_study: MakeStudy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"the report cannot be written to .*file"):
        write_report(make_study(), tmp_path / "file")


def test_the_record_alone_needs_neither_torch_nor_ray(make_search: MakeSearch) -> None:
    study = make_search(6)
    code = (
        "import sys; from tunelab.cli import run; status = run(sys.argv[1:]);"
        "print(status, *({'torch', 'ray', 'optuna', 'torchvision', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "report", str(study.path)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "RAY_ADDRESS": "nowhere"},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0", done.stderr


def test_tables_are_escaped_and_have_headings() -> None:
    text = table("<caption>", [{"a<b": "<script>", "n": 1.23456789}, {"a<b": None, "n": 2}])
    found = Page(text)
    assert "<script>" in found.text
    assert found.all("script") == []
    assert [one["scope"] for one in found.all("th")] == ["col", "col", "row", "row"]
    assert "1.235" in found.text
    assert table("none", []) == ""
    assert [cell(value) for value in (None, True, 3, [1, "x"], "猫")] == ["–", "yes", "3", "1, x", "猫"]
