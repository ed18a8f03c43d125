"""One engine, driven by hand: what it records, whom it tells, what ends it.

What it trains next is in test_phases.py, whole searches are in test_whole_searches.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig, from_json, to_json
from tunelab.errors import InputError, TunelabError
from tunelab.journal import Journal, read_journal
from tunelab.records import EpochMetrics, Finding, Trial, TrialStatus
from tunelab.study import replay
from tunelab.tuning.deadline import Deadline
from tunelab.tuning.engine import Engine
from tunelab.tuning.losses import FAILURES_IN_A_ROW, LATEST, FewerBeside, Loss
from tunelab.tuning.repeats import NoRepeats
from tunelab.tuning.sources import FixedSource, Proposal
from tunelab.tuning.stopping import Decision, NeverStop, SuccessiveHalving

ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))


class Log:
    """Writes down, in one list, what the record, the source and the listener are told."""

    def __init__(self) -> None:
        self.said: list[str] = []


class LoggingJournal:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.events: list[Mapping[str, Any]] = []
        self.broken = False

    def append(self, *events: Mapping[str, Any]) -> None:
        if self.broken:
            raise TunelabError("the record cannot be written: No space left on device")
        self.log.said.append("record " + ", ".join(f"{event['event']} {event['trial']}" for event in events))
        self.events += events


class LoggingSource(FixedSource):
    def __init__(self, log: Log, configs: list[TrialConfig]) -> None:
        super().__init__(configs, lambda config: {"params": 1})
        self.log = log

    def observe(self, number: int, epoch: int, score: float) -> None:
        self.log.said.append(f"source observe {number} {epoch} {score}")

    def end(self, number: int, status: TrialStatus, score: float | None, costs: Mapping[str, float]) -> None:
        self.log.said.append(f"source end {number} {status.value} {score}")


class LoggingListener:
    def __init__(self, log: Log) -> None:
        self.log = log

    def started(self, trial: Trial) -> None:
        self.log.said.append(f"started {trial.number}")

    def reported(self, trial: Trial) -> None:
        self.log.said.append(f"reported {trial.number} {len(trial.epochs)}")

    def retried(self, trial: Trial, why: str) -> None:
        self.log.said.append(f"retried {trial.number}: {why}")

    def ended(self, trial: Trial) -> None:
        self.log.said.append(f"ended {trial.number} {trial.status.value}")


class StopsAtTwo:
    """A rule with a rung at epoch 2, where everything stops."""

    rungs = (2,)

    def report(self, number: int, epoch: int, score: float, loss: float, noise: float = 0.0) -> Decision | None:
        return Decision(2, True, score, loss, 2, 3, 1, 0.9, noise, "place 2 of 3, 1 go on") if epoch == 2 else None

    def restore(self, number: int, epoch: int, score: float, loss: float) -> None:
        pass

    def promotable(self, paused: Collection[int], noise: float = 0.0) -> tuple[int, Decision] | None:
        return None


def configs(count: int, epochs: int = 3) -> list[TrialConfig]:
    return [TrialConfig(ARCH, TrainConfig(epochs=epochs), seed=seed) for seed in range(count)]


def epoch(number: int, score: float = 0.5) -> EpochMetrics:
    return EpochMetrics(number, 1.0, 0.5, 1.0, score, 0.1, 1.0, 1.0, 1.0)


def make_engine(
    count: int = 3, stopping: Any = None, known: list[Trial] | None = None, *, epochs: int = 3, **more: Any
) -> tuple[Engine, LoggingJournal, list[str]]:
    log = Log()
    journal: Any = LoggingJournal(log)
    source = LoggingSource(log, configs(count + 20, epochs))
    engine = Engine(journal, known or [], source, stopping or NeverStop(), count, LoggingListener(log), **more)
    return engine, journal, log.said


def test_everything_is_in_the_record_before_it_is_acted_on() -> None:
    engine, journal, said = make_engine(1, StopsAtTwo())
    trial = engine.next_trial()
    assert trial is not None
    assert engine.report(0, epoch(1, 0.25))
    assert not engine.report(0, epoch(2, 0.5))
    assert said == [
        "record proposed 0",
        "started 0",
        "record result 0",
        "source observe 0 1 0.25",
        "reported 0 1",
        "record result 0, decision 0, ended 0",
        "source observe 0 2 0.5",
        "reported 0 2",
        "source end 0 STOPPED 0.5",
        "ended 0 STOPPED",
    ]
    assert from_json(TrialConfig, journal.events[0]["config"]) == configs(1)[0]
    assert journal.events[-1]["reason"] == "epoch 2: place 2 of 3, 1 go on"
    assert journal.events[3]["decision"]["cutoff"] == 0.9
    assert replay(journal.events) == [trial]


class Disk:
    """What of a record would survive a power cut, and what the source and the listener were told when it was so."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.journal = Journal.open(folder)
        self.file = folder / "journal.jsonl"
        self.survives: list[dict[str, Any]] = []
        self.syncs = 0
        self.told: list[tuple[str, str]] = []
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self._note)

    def _note(self, descriptor: int) -> None:
        self._sync(descriptor)
        self.survives = list(read_journal(self.file))
        self.syncs += 1

    def append(self, said: str) -> None:
        """Somebody was told this."""
        self.told.append((said, str(self.survives[-1]["event"])))


def test_nobody_is_told_of_what_a_power_cut_could_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path, monkeypatch)
    log: Any = SimpleNamespace(said=disk)
    engine = Engine(disk.journal, [], LoggingSource(log, configs(2)), StopsAtTwo(), 1, LoggingListener(log))
    syncs = []
    engine.next_trial()
    syncs.append(disk.syncs)
    for number in (1, 2):
        assert engine.report(0, epoch(number)) is (number == 1)
        assert [event["event"] for event in disk.survives] == [event["event"] for event in read_journal(disk.file)]
        syncs.append(disk.syncs)
    assert syncs == [1, 2, 3], "one for the proposal, one for each report, whatever it leads to"
    assert disk.told == [
        ("started 0", "proposed"),
        ("source observe 0 1 0.5", "result"),
        ("reported 0 1", "result"),
        ("source observe 0 2 0.5", "ended"),
        ("reported 0 2", "ended"),
        ("source end 0 STOPPED 0.5", "ended"),
        ("ended 0 STOPPED", "ended"),
    ]
    disk.journal.close()


def test_the_last_epoch_completes_a_trial() -> None:
    engine, journal, said = make_engine(1)
    engine.next_trial()
    assert [engine.report(0, epoch(number)) for number in (1, 2, 3)] == [True, True, False]
    assert said[-5:] == [
        "record result 0, ended 0",
        "source observe 0 3 0.5",
        "reported 0 3",
        "source end 0 COMPLETED 0.5",
        "ended 0 COMPLETED",
    ]
    assert journal.events[-1]["status"] == "COMPLETED"
    assert engine.unfinished == 0


def test_a_report_that_comes_twice_changes_nothing() -> None:
    engine, _, said = make_engine(1, StopsAtTwo())
    engine.next_trial()
    engine.report(0, epoch(1))
    before = list(said)
    assert engine.report(0, epoch(1)), "it goes on"
    assert engine.report(0, epoch(1, 0.9)), "the first result stays, whatever comes again"
    assert said == before
    engine.report(0, epoch(2))
    before = list(said)
    assert not engine.report(0, epoch(2))
    assert not engine.report(0, epoch(3)), "an ended trial stays ended"
    engine.end(0, TrialStatus.FAILED, "too late")
    assert said == before
    assert engine.trials[0].status is TrialStatus.STOPPED


def test_notes_are_recorded_once_with_the_epoch_that_brings_them() -> None:
    engine, journal, _ = make_engine(1)
    trial = engine.next_trial()
    assert trial is not None
    for number, notes in ((1, ["streamed"]), (2, ["streamed", "a checkpoint was passed over"]), (3, ["streamed"])):
        engine.report(0, epoch(number), notes)
    told = [event.get("notes") for event in journal.events if event["event"] == "result"]
    assert told == [["streamed"], ["a checkpoint was passed over"], None]
    assert trial.notes == ["streamed", "a checkpoint was passed over"]
    assert replay(journal.events) == [trial]


def test_what_was_told_before_a_restart_and_comes_again_changes_nothing() -> None:
    known = [Trial(0, to_json(configs(1)[0]), epochs=[epoch(1), epoch(2)])]
    engine, _, said = make_engine(2, known=known)
    assert engine.next_trial() is known[0]
    assert said == ["started 0"]
    assert engine.report(0, epoch(2))
    assert said == ["started 0"]
    assert not engine.report(0, epoch(3))
    second = engine.next_trial()
    assert second is not None
    assert second.number == 1


def test_an_epoch_trained_a_second_time_leaves_the_first_result_and_its_decision() -> None:
    """The record is an epoch ahead of the checkpoint where a process was killed before it had written that."""
    decided = [{**DECIDED, "stop": False, "pause": pause} for pause in (True, False)]
    known = Trial(0, to_json(configs(1, 54)[0]), epochs=[epoch(1), epoch(2)], decisions=decided)
    engine, journal, said = make_engine(1, SuccessiveHalving(54), known=[known])
    assert engine.next_trial() is known
    assert engine.report(0, epoch(1)), "the last epoch in the checkpoint"
    assert engine.report(0, epoch(2, 0.4)), "on a GPU the number may be another"
    assert said == ["started 0"]
    assert (known.epochs, known.decisions) == ([epoch(1), epoch(2)], decided)
    assert engine.report(0, epoch(3))
    assert [event["metrics"]["epoch"] for event in journal.events] == [3]


def test_open_trials_come_first_after_a_restart() -> None:
    def known(number: int, status: str) -> Trial:
        return Trial(number, to_json(configs(6)[number]), status=TrialStatus(status), epochs=[epoch(1)])

    trials = [known(0, "COMPLETED"), known(1, "PAUSED"), known(2, "FAILED"), known(3, "RUNNING")]
    engine, _, _ = make_engine(6, known=trials)
    assert engine.unfinished == 4
    handed = [engine.next_trial() for _ in range(5)]
    assert [None if trial is None else trial.number for trial in handed] == [1, 3, 4, 5, None]
    assert all(trial is None or trial.status is TrialStatus.RUNNING for trial in handed)


def test_what_a_crash_left_undecided_is_decided_at_the_start() -> None:
    full = Trial(0, to_json(configs(1)[0]), epochs=[epoch(1), epoch(2), epoch(3)])
    engine, journal, _ = make_engine(1, known=[full])
    assert [event["event"] for event in journal.events] == ["ended"]
    assert (engine.unfinished, engine.next_trial()) == (0, None)
    at_rung = Trial(0, to_json(configs(1)[0]), epochs=[epoch(1), epoch(2)])
    engine, journal, _ = make_engine(1, StopsAtTwo(), known=[at_rung])
    assert [event["event"] for event in journal.events] == ["decision", "ended"]
    decided = dataclasses.replace(at_rung, status=TrialStatus.RUNNING, decisions=[{**DECIDED}])
    engine, journal, _ = make_engine(1, SuccessiveHalving(54), known=[decided])
    assert [(event["event"], event["reason"]) for event in journal.events] == [("ended", "epoch 2: as it was then")]


DECIDED = {"epoch": 2, "stop": True, "score": 0.5, "loss": 1.0, "why": "as it was then"}


def test_rungs_are_filled_again_after_a_restart() -> None:
    def known(number: int, score: float) -> Trial:
        decision = {"epoch": 2, "stop": False, "score": score, "loss": 1.0}
        status = TrialStatus.COMPLETED
        return Trial(number, to_json(configs(4, 54)[number]), status=status, epochs=[epoch(1)], decisions=[decision])

    rule = SuccessiveHalving(54)
    make_engine(4, rule, known=[known(0, 0.9), known(1, 0.8), known(2, 0.7)])
    decision = rule.report(3, 2, 0.1, 1.0)
    assert decision is not None
    assert (decision.rank, decision.rivals) == (4, 4)


def test_a_deadline_halts_and_nothing_more_is_handed_out() -> None:
    engine, _, said = make_engine(2, deadline=Deadline(-1.0))  # the monotonic clock began at 0
    assert engine.next_trial() is None
    assert engine.should_halt
    assert (engine.halted, engine.error, engine.unfinished, said) == ("deadline", None, 2, [])
    engine, _, _ = make_engine(2, deadline=Deadline())
    assert engine.next_trial() is not None
    assert not engine.should_halt


def test_the_first_reason_to_halt_stays() -> None:
    engine, _, _ = make_engine(2, deadline=Deadline(-1.0))
    engine.halt("SIGINT")
    engine.halt("SIGTERM")
    assert engine.should_halt
    assert engine.halted == "SIGINT"


def test_results_that_come_after_a_halt_are_recorded_still() -> None:
    engine, journal, _ = make_engine(2)
    engine.next_trial()
    engine.halt("SIGINT")
    assert engine.report(0, epoch(1))
    assert journal.events[-1]["event"] == "result"


def fail(engine: Engine, reason: str, status: TrialStatus = TrialStatus.FAILED) -> None:
    trial = engine.next_trial()
    assert trial is not None
    engine.end(trial.number, status, reason)


def test_five_failures_in_a_row_with_one_cause_end_the_search() -> None:
    engine, _, _ = make_engine(20)
    for _ in range(FAILURES_IN_A_ROW - 1):
        fail(engine, "no data")
    assert not engine.should_halt
    fail(engine, "no data")
    assert engine.should_halt
    assert engine.next_trial() is None
    assert engine.halted == "failures"
    assert str(engine.error) == "5 trials in a row failed with: no data"
    assert isinstance(engine.error, TunelabError)
    assert engine.error.exit_status == 1
    assert engine.unfinished == 15


def test_failures_of_several_causes_or_with_others_between_them_do_not() -> None:
    engine, _, _ = make_engine(20)
    engine.next_trial()
    engine.report(0, epoch(1))
    for number in range(8):
        fail(engine, f"cause {number % 2}")
    for _ in range(3):
        fail(engine, "no data")
        fail(engine, "the loss became nan", TrialStatus.DIVERGED)
        fail(engine, "the loss became nan", TrialStatus.DIVERGED)
    assert not engine.should_halt


def test_the_first_five_failures_end_the_search_whatever_their_causes() -> None:
    engine, _, _ = make_engine(20)
    for number in range(FAILURES_IN_A_ROW):
        assert not engine.should_halt
        fail(engine, f"cause {number}: more of it")
    assert str(engine.error) == "the first 5 trials all failed, the last with: cause 4: more of it"


def test_a_search_of_which_more_than_half_fails_ends() -> None:
    engine, _, _ = make_engine(40)
    engine.next_trial()
    engine.report(0, epoch(1))
    for number in range(LATEST + 1):
        assert not engine.should_halt
        if number % 5 > 2:
            fail(engine, "the loss became nan", TrialStatus.DIVERGED)
        else:
            fail(engine, f"cause {number % 5}: no {number}")
    assert str(engine.error) == "12 of the last 20 trials failed, 4 of them with: cause 1"


def test_failures_of_an_earlier_start_do_not_count_and_its_success_does() -> None:
    """What was wrong may have been mended before the search is resumed."""
    failed = [Trial(number, {"train": {"epochs": 3}}, status=TrialStatus.FAILED, reason="no data") for number in (0, 1)]
    done = Trial(2, {"train": {"epochs": 3}}, status=TrialStatus.COMPLETED, epochs=[epoch(1), epoch(2), epoch(3)])
    engine, _, _ = make_engine(30, known=[*failed, done])
    for number in range(FAILURES_IN_A_ROW + 1):
        fail(engine, f"cause {number}")
    assert not engine.should_halt


# What becomes of a trial whose process is gone.


def test_a_lost_trial_goes_on_twice_and_then_has_failed() -> None:
    engine, journal, said = make_engine(2)
    engine.next_trial()
    engine.report(0, epoch(1))
    for _ in range(2):
        engine.lose(0, Loss("lost", "killed by signal 9"))
        again = engine.next_trial()
        assert again is not None
        assert (again.number, again.split, len(again.epochs)) == (0, 1, 1), "before anything new is begun"
    engine.lose(0, Loss("lost", "killed by signal 9"))
    assert engine.trials[0].status is TrialStatus.FAILED
    assert engine.trials[0].reason == "the trial's process died 3 times: killed by signal 9"
    assert [event["event"] for event in journal.events].count("retried") == 2
    assert "retried 0: the trial's process died: killed by signal 9; it goes on after epoch 1" in said
    assert said.index("record retried 0") < said.index(next(line for line in said if line.startswith("retried 0")))
    assert replay(journal.events)[0].retries == engine.trials[0].retries


def test_a_hung_trial_goes_on_once() -> None:
    engine, _, said = make_engine(1)
    engine.next_trial()
    engine.lose(0, Loss("hung", "no step for 60 s"))
    assert engine.next_trial() is engine.trials[0]
    engine.lose(0, Loss("hung", "no step for 60 s"))
    assert engine.trials[0].reason == "ended by the watchdog 2 times: no step for 60 s"
    assert "retried 0: ended by the watchdog: no step for 60 s; it begins again" in said


def test_that_a_node_goes_is_no_fault_of_a_trial() -> None:
    """It may be taken back ten times, and nothing of that counts as a death of the trial's process."""
    engine, journal, said = make_engine(1)
    engine.next_trial()
    engine.report(0, epoch(1))
    gone = Loss("node", "its node 10.0.0.3 is gone")
    for loss in (*[gone] * 5, Loss("lost", "killed"), *[gone] * 5, Loss("lost", "killed")):
        engine.lose(0, loss)
        assert engine.next_trial() is engine.trials[0]
    assert "retried 0: a node was lost: its node 10.0.0.3 is gone; it goes on after epoch 1" in said
    assert replay(journal.events)[0].retries == engine.trials[0].retries
    engine.lose(0, gone)
    assert engine.trials[0].reason == "a node was lost 11 times: its node 10.0.0.3 is gone"


def test_out_of_memory_means_smaller_parts_then_fewer_trials_beside_then_failure() -> None:
    engine, _, said = make_engine(6, places=FewerBeside(4))
    for _ in range(4):
        engine.next_trial()
    batch = engine.trials[0].config["train"]["batch_size"]
    engine.lose(0, Loss("memory", "900 MiB of 800 MiB"))
    assert engine.next_trial() is engine.trials[0]
    assert engine.trials[0].split == 4
    engine.lose(0, Loss("memory", "900 MiB of 800 MiB"))
    assert engine.trials[0].split == min(16, batch)
    for number in (1, 2):
        assert engine.next_trial() is None, "it waits until only half as many run, and nothing new begins before"
        assert engine.waits
        engine.end(number, TrialStatus.STOPPED, "")
    assert engine.next_trial() is engine.trials[0]
    assert engine.next_trial() is None
    engine.lose(0, Loss("memory", "900 MiB of 800 MiB"))
    assert engine.trials[0].reason == "out of memory 3 times: 900 MiB of 800 MiB"
    assert len([engine.next_trial(), engine.next_trial(), engine.next_trial()]) == 3
    assert any("with batches in 16 parts and fewer trials beside it" in line for line in said)


def test_one_that_does_not_run_is_not_lost() -> None:
    """The end of the process of a trial that pauses, or waits already, is none of the trial's."""
    engine, journal, _ = make_engine(6, SuccessiveHalving(27, (), promote=True), epochs=27)
    for number in range(6):
        engine.next_trial()
        engine.report(number, epoch(1, 0.9 - number / 10))
    paused = [number for number, trial in engine.trials.items() if trial.status is TrialStatus.PAUSED]
    running = [number for number in engine.trials if number not in paused]
    assert paused
    for number in (*paused, *running, *running):
        engine.lose(number, Loss("lost", "killed by signal 9"))
    assert [event["trial"] for event in journal.events if event["event"] == "retried"] == running


class Small(FewerBeside):
    """No room for every second trial."""

    def refuses(self, trial: Trial) -> str:
        return "" if trial.number % 2 else f"too large for the memory: trial {trial.number}"


def test_what_can_never_run_has_failed_before_it_begins_and_the_next_is_handed_out() -> None:
    engine, journal, said = make_engine(4, places=Small(4))
    first, second = engine.next_trial(), engine.next_trial()
    assert first is engine.trials[1]
    assert second is engine.trials[3]
    assert [engine.trials[number].status for number in (0, 2)] == [TrialStatus.FAILED] * 2
    assert engine.trials[2].reason == "too large for the memory: trial 2"
    assert [event["event"] for event in journal.events] == ["proposed", "ended", "proposed"] * 2
    assert not any(line.startswith(("started 0", "started 2")) for line in said)


def test_a_search_without_room_for_any_trial_ends_with_that_cause() -> None:
    places = FewerBeside(1)
    places.refuses = lambda trial: "too large for the memory: it takes 9 GiB"  # type: ignore[method-assign]
    engine, _, _ = make_engine(50, places=places)
    assert engine.next_trial() is None
    assert len(engine.trials) == FAILURES_IN_A_ROW
    assert "too large for the memory: it takes 9 GiB" in str(engine.error)


def test_what_was_lost_counts_over_all_starts() -> None:
    engine, journal, _ = make_engine(1)
    engine.next_trial()
    for _ in range(2):
        engine.lose(0, Loss("lost", "killed"))
        engine.next_trial()
    resumed, _, _ = make_engine(1, known=replay(journal.events))
    assert resumed.next_trial() is not None
    resumed.lose(0, Loss("lost", "killed"))
    assert resumed.trials[0].status is TrialStatus.FAILED


def test_what_a_halt_ends_is_not_lost_and_storage_halts() -> None:
    engine, journal, _ = make_engine(2)
    engine.next_trial()
    engine.lose(0, Loss("storage", "No space left on device"))
    assert engine.halted == "the trials' storage: No space left on device"
    engine.lose(0, Loss("lost", "killed"))
    assert [event["event"] for event in journal.events] == ["proposed"]
    assert not engine.trials[0].status.ended


def test_a_repeat_is_computed_in_the_parts_of_its_first_training() -> None:
    engine, journal, _ = make_engine(1, repeats=Once())
    engine.next_trial()
    engine.lose(0, Loss("memory", "no room"))
    engine.next_trial()
    for number in (1, 2, 3):
        engine.report(0, epoch(number))
    again = engine.next_trial()
    assert again is not None
    assert (again.repeat_of, again.split, again.retries) == (0, 4, [])
    assert [trial.split for trial in replay(journal.events)] == [4, 4]


def test_while_held_nothing_new_begins_and_what_runs_goes_on() -> None:
    engine, _, _ = make_engine(3)
    engine.next_trial()
    engine.hold("little room on the disk")
    assert engine.next_trial() is None
    assert engine.report(0, epoch(1))
    engine.end(0, TrialStatus.STOPPED, "")
    assert engine.next_trial() is None
    assert engine.waits, "nobody runs, and it is not over"
    assert not engine.halted
    engine.hold("")
    assert engine.next_trial() is engine.trials[1]


@pytest.mark.parametrize("at", ["proposed", "result", "ended"])
def test_a_record_that_cannot_be_written_ends_the_search(at: str) -> None:
    engine, journal, said = make_engine(3)
    if at == "proposed":
        journal.broken = True
        with pytest.raises(TunelabError, match="No space left"):
            engine.next_trial()
        assert engine.trials == {}, "what is not recorded did not happen"
    else:
        engine.next_trial()
        before = list(said)
        journal.broken = True
        with pytest.raises(TunelabError, match="No space left"):
            engine.report(0, epoch(1)) if at == "result" else engine.end(0, TrialStatus.FAILED, "x")
        assert said == before
        assert engine.trials[0].epochs == []
        assert engine.trials[0].status is TrialStatus.RUNNING
    assert engine.should_halt
    assert "No space left" in str(engine.error)


@pytest.mark.parametrize("at", [2, 3])
def test_an_epoch_with_what_it_leads_to_is_recorded_or_did_not_happen(at: int) -> None:
    engine, journal, said = make_engine(1, StopsAtTwo() if at == 2 else NeverStop())
    engine.next_trial()
    trial = engine.trials[0]
    for number in range(1, at):
        engine.report(0, epoch(number))
    before = list(said)
    journal.broken = True
    with pytest.raises(TunelabError, match="No space left"):
        engine.report(0, epoch(at))
    assert said == before
    assert (len(trial.epochs), trial.decisions, trial.status) == (at - 1, [], TrialStatus.RUNNING)
    assert engine.unfinished == 1
    assert replay(journal.events) == [trial]


def test_a_source_without_proposals_ends_the_search_and_lets_the_running_trials_end() -> None:
    class Empty(LoggingSource):
        def propose(self, number: int, trials: Mapping[int, Trial]) -> Proposal:
            if number == 2:
                raise InputError("none of 500 draws is within the limits")
            return super().propose(number, trials)

    log = Log()
    source = Empty(log, configs(5))
    engine = Engine(LoggingJournal(log), [], source, NeverStop(), 5, LoggingListener(log))  # type: ignore[arg-type]
    assert [engine.next_trial() is None for _ in range(4)] == [False, False, True, True]
    assert "none of 500 draws" in str(engine.error)
    assert not engine.should_halt
    assert engine.waits
    assert engine.report(0, epoch(1))
    engine.end(0, TrialStatus.FAILED, "x")
    engine.end(1, TrialStatus.FAILED, "x")
    assert (engine.next_trial(), engine.waits, engine.unfinished) == (None, False, 3)


def test_a_record_with_more_trials_than_asked_for_is_finished_all_the_same() -> None:
    known = [Trial(number, to_json(configs(3)[number]), epochs=[epoch(1)]) for number in range(3)]
    engine, _, _ = make_engine(2, known=known)
    assert engine.unfinished == 3
    handed = [engine.next_trial() for _ in range(4)]
    assert [trial.number for trial in handed if trial is not None] == [0, 1, 2]


# Health.

DEAD = Finding("dead units", "features.0", {"dead_share": 1.0, "units": 8}, "lower the rate", 1, 4)
FLAT = Finding("accuracy of guessing", "", {"accuracy": 0.1}, "try another rate", 2)
STUCK = "no gradient reaches any layer but the last"


def test_findings_are_recorded_once_and_read_again() -> None:
    engine, journal, _ = make_engine(1)
    engine.next_trial()
    engine.report(0, epoch(1), findings=[DEAD])
    engine.report(0, epoch(2), findings=[DEAD, FLAT])
    rounded = dataclasses.replace(DEAD, evidence={"dead_share": 0.999})  # as after a restart
    hopeless = dataclasses.replace(FLAT, epoch=3, hopeless=True)
    engine.end(0, TrialStatus.DIVERGED, "the loss became nan", [rounded, FLAT, hopeless])
    assert [len(event.get("findings", ())) for event in journal.events] == [0, 1, 1, 1]
    (trial,) = replay(json.loads(json.dumps(journal.events)))
    assert trial.findings == engine.trials[0].findings == [DEAD, FLAT, hopeless]
    assert trial.diagnosis == hopeless


def test_a_hopeless_trial_ends_when_its_grace_is_over() -> None:
    engine, journal, _ = make_engine(1, epochs=5, grace=3)
    engine.next_trial()
    assert engine.report(0, epoch(1), hopeless=STUCK)
    assert engine.report(0, epoch(2), hopeless=STUCK)
    assert not engine.report(0, epoch(3), findings=[DEAD], hopeless=STUCK)
    assert (engine.trials[0].status, engine.trials[0].reason) == (TrialStatus.DIVERGED, f"epoch 3: {STUCK}")
    assert [event["event"] for event in journal.events[-2:]] == ["result", "ended"]
    assert journal.events[-2]["findings"] == [DEAD.to_json()]


def test_hope_may_come_back_within_the_grace() -> None:
    engine, _, _ = make_engine(1, epochs=5, grace=2)
    engine.next_trial()
    assert engine.report(0, epoch(1), hopeless=STUCK)
    assert all(engine.report(0, epoch(number)) for number in (2, 3, 4))


@pytest.mark.parametrize("more", [{}, {"grace": None}, {"grace": 1, "in_full": ("given",)}])
def test_without_health_and_in_full_no_trial_is_given_up(more: dict[str, Any]) -> None:
    engine, _, _ = make_engine(1, **more)
    trial = engine.next_trial()
    assert trial is not None
    trial.origin = "given"
    assert engine.report(0, epoch(1), findings=[DEAD], hopeless=STUCK)
    assert engine.report(0, epoch(2), hopeless=STUCK)
    assert not engine.report(0, epoch(3), hopeless=STUCK)
    assert trial.status is TrialStatus.COMPLETED
    assert trial.findings == [DEAD], "what is wrong is told all the same"


def test_a_trial_that_is_through_is_complete_whatever_its_health() -> None:
    engine, _, _ = make_engine(1, epochs=1, grace=1)
    engine.next_trial()
    engine.report(0, epoch(1), hopeless=STUCK)
    assert engine.trials[0].status is TrialStatus.COMPLETED


class Once(NoRepeats):
    """Trains trial 0 again at the end, once."""

    def late(self, trials: Mapping[int, Trial]) -> int | None:
        return 0 if len(trials) == 1 else None


def test_a_repeat_has_findings_of_its_own() -> None:
    engine, _, _ = make_engine(1, repeats=Once())
    engine.next_trial()
    for number in (1, 2, 3):
        engine.report(0, epoch(number), findings=[DEAD])
    again = engine.next_trial()
    assert again is not None
    assert (again.repeat_of, again.findings) == (0, [])
