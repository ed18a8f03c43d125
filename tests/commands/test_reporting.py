from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunelab.cli import run

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

SCORES = [0.1, 0.2, 0.3, 0.4]


def test_report_says_what_it_wrote(make_study: MakeStudy, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study = make_study([("COMPLETED", SCORES), ("STOPPED", [0.1]), ("FAILED", [])])
    assert run(["report"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines()[-1] == str(study.path / "report" / "index.html")
    assert "left out: Who went on at the rungs: no trial was compared at a rung" in out
    assert "- 1 of 3 trials failed" in out
    assert run(["report", "study", "--out", str(tmp_path / "there"), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert all(Path(file).parent == tmp_path / "there" for file in told["files"])
    assert all(Path(file).stat().st_size > 0 for file in told["files"])
    assert told["recommendations"][0]["numbers"]
    assert (tmp_path / "there" / "index.html").exists()


def test_nothing_to_report_is_one_line(
    capfd: pytest.CaptureFixture[str], make_study: MakeStudy, tmp_path: Path
) -> None:
    for arguments, said in ((["report"], "there is no study"), (["report", "nowhere"], "nowhere")):
        assert run(arguments) == 2
        assert said in capfd.readouterr().err
    make_study()
    (tmp_path / "file").write_text("in the way")
    assert run(["report", "--out", str(tmp_path / "file")]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
