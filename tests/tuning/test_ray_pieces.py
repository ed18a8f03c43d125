"""What Ray Tune is told; searches on real Ray are in test_search_on_ray.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig, to_json
from tunelab.records import EpochMetrics, Finding, TrialStatus
from tunelab.tuning.engine import Engine
from tunelab.tuning.losses import Loss
from tunelab.tuning.progress import Silent
from tunelab.tuning.ray_pieces import EngineCallback, EngineScheduler, EngineSearcher, EngineStopper, bridge
from tunelab.tuning.sources import FixedSource
from tunelab.tuning.stopping import NeverStop

CONFIGS = [
    TrialConfig(ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),)), TrainConfig(epochs=2), seed=seed)
    for seed in range(2)
]


class Memory:
    def append(self, *events: Any) -> None:
        pass


@pytest.fixture
def engine() -> Engine:
    source = FixedSource(CONFIGS, lambda config: {"params": 1})
    return Engine(Memory(), [], source, NeverStop(), 2, Silent())  # type: ignore[arg-type]


@pytest.fixture
def key(engine: Engine) -> Iterator[str]:
    with bridge(engine, lambda number: Path(f"/trials/{number}"), {"device": "cpu", "threads": 1}) as made:
        yield made


def tell(key: str, number: int, **content: Any) -> str:
    scheduler = EngineScheduler(key)
    trial: Any = SimpleNamespace(config={"number": number})
    return scheduler.on_trial_result(None, trial, {"report": json.dumps(content)})


def epoch(number: int) -> dict[str, Any]:
    return EpochMetrics(number, 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 1.0, 1.0).to_json()


def test_a_search_is_finished_only_when_nothing_runs(key: str, engine: Engine) -> None:
    """Ray never asks again after FINISHED; a paused trial or a repeat may still be to come."""
    searcher = EngineSearcher(key)
    given = [searcher.suggest("a"), searcher.suggest("b")]
    assert [one["number"] for one in given] == [0, 1]
    assert json.loads(given[1]["trial_config"]) == to_json(CONFIGS[1])
    del given[1]["trial_config"]
    assert given[1] == {
        "number": 1,
        "folder": "/trials/1",
        "known_epochs": 0,
        "split": 1,
        "fewer": False,
        "device": "cpu",
        "threads": 1,
    }
    assert searcher.suggest("c") is None
    assert [tell(key, 0, metrics=epoch(number)) for number in (1, 2)] == ["CONTINUE", "STOP"]
    assert searcher.suggest("c") is None
    assert tell(key, 1, status="FAILED", reason="x") == "STOP"
    assert searcher.suggest("c") == Searcher.FINISHED
    assert engine.unfinished == 0


def test_a_trial_that_goes_on_tells_what_is_known(key: str, engine: Engine) -> None:
    engine.trials.clear()
    known = engine.next_trial()
    assert known is not None
    engine.report(0, EpochMetrics(**epoch(1)))
    again = Engine(Memory(), [known], FixedSource(CONFIGS, dict), NeverStop(), 2, Silent())  # type: ignore[arg-type]
    with bridge(again, lambda number: Path("/"), {}) as other:
        assert EngineSearcher(other).suggest("a")["known_epochs"] == 1


def test_notes_of_a_trial_reach_the_engine(key: str, engine: Engine) -> None:
    EngineSearcher(key).suggest("a")
    tell(key, 0, metrics=epoch(1), notes=["streamed"])
    assert engine.trials[0].notes == ["streamed"]


def test_a_halted_search_is_finished_and_stops_all(key: str, engine: Engine) -> None:
    searcher, stopper = EngineSearcher(key), EngineStopper(key)
    searcher.suggest("a")
    assert not stopper.stop_all()
    assert tell(key, 0, halt="the trials' storage: No space left on device") == "STOP"
    assert searcher.suggest("b") == Searcher.FINISHED
    assert stopper.stop_all()
    assert not stopper("a", {}), "a single trial is stopped by the scheduler"
    assert engine.halted == "the trials' storage: No space left on device"


class Told:
    """A witness that knows of one trial."""

    def testify(self, number: int) -> Loss | None:
        return Loss("memory", "killed by the kernel") if number == 1 else None


def test_the_engine_hears_why_a_process_is_gone(engine: Engine) -> None:
    with bridge(engine, lambda number: Path("/"), {}, [Told()]) as key:
        assert [EngineSearcher(key).suggest("a")["number"] for _ in range(2)] == [0, 1]
        for number in (0, 1):
            died: Any = SimpleNamespace(config={"number": number})
            EngineCallback(key).on_trial_error(1, [], died)
    assert [trial.retries[0]["cause"] for trial in engine.trials.values()] == ["lost", "memory"]
    assert [trial.split for trial in engine.trials.values()] == [1, 4]


def test_a_trial_that_cannot_go_on_is_handed_out_again(key: str, engine: Engine) -> None:
    EngineSearcher(key).suggest("a")
    assert tell(key, 0, lost={"cause": "memory", "why": "no room"}) == "STOP"
    given = EngineSearcher(key).suggest("b")
    assert (given["number"], given["split"]) == (0, 4)


def test_findings_and_lost_hope_reach_the_engine(key: str, engine: Engine) -> None:
    engine._grace = 1
    EngineSearcher(key).suggest("a")
    finding = Finding("dead units", "one", {"dead_share": 1.0}, "lower the rate", 1, 4, hopeless=True)
    goes_on = tell(key, 0, metrics=epoch(1), findings=[finding.to_json()], hopeless="no gradient")
    assert goes_on == "STOP"
    assert engine.trials[0].findings == [finding]
    assert (engine.trials[0].status, engine.trials[0].reason) == (TrialStatus.DIVERGED, "epoch 1: no gradient")
    EngineSearcher(key).suggest("b")
    tell(key, 1, status="DIVERGED", reason="the loss became nan", findings=[finding.to_json()])
    assert engine.trials[1].findings == [finding]


def test_each_question_of_ray_is_counted(engine: Engine) -> None:
    asked: list[bool] = []
    with bridge(engine, lambda number: Path("/trials"), {}, asked=lambda: asked.append(True)) as key:
        assert not EngineStopper(key).stop_all()
        engine.halt("SIGINT")
        assert EngineStopper(key).stop_all()
    assert len(asked) == 2


def test_no_more_are_handed_out_than_there_are_places_for(engine: Engine) -> None:
    """On a cluster places come and go."""
    places = [1]
    more = {"node_memory": 5}
    with bridge(engine, lambda number: Path("trials"), {}, places=lambda: places[0], for_trial=lambda _: more) as key:
        searcher = EngineSearcher(key)
        first = searcher.suggest("a")
        assert first["node_memory"] == 5
        assert first["folder"] == str(Path.cwd() / "trials"), "for a process that is somewhere else"
        assert searcher.suggest("b") is None
        places[0] = 2
        assert searcher.suggest("b")["number"] == 1
        places[0] = 1
        assert searcher.suggest("c") is None
        engine.halt("SIGINT")
        assert searcher.suggest("c") == Searcher.FINISHED
