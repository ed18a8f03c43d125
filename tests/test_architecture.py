"""The map of tunelab, and the proof that the code keeps to it.

`ROOMS` is the authority: each module lives in one room, a room says what it is for, which rooms it may import (always
ones further down the list) and which heavy packages it may touch. Everything is read with `ast`; nothing is imported.
"""

from __future__ import annotations

import ast
import configparser
import graphlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Folders at the top and the packages that setup.cfg installs them as.
FOLDERS = {"tunelab": "tunelab", "search_spaces": "tunelab.search_spaces", "analysis": "tunelab.analysis"}


@dataclass(frozen=True)
class Room:
    """A module or package, what it is for, the modules or packages it may import, the heavy packages it may touch."""

    name: str
    purpose: str
    imports: str = ""
    heavy: str = ""


# From the roof to the floor: an import may only go down. `tunelab.errors` is open to all and not repeated.
ROOMS = [
    Room(
        "tunelab.cli",
        "the group of commands, each loaded when it is asked for; errors become one line here and nowhere else",
        "tunelab.__init__ tunelab.commands tunelab.supervision tunelab.shared_options tunelab.credentials",
    ),
    Room(
        "tunelab.commands",
        "parse, call, print: a module for each group of commands",
        "tunelab.doctor tunelab.dashboards"
        " tunelab.tuning.extend tunelab.tuning.runner tunelab.tuning.execute tunelab.tuning.prospect"
        " tunelab.tuning.grid_files tunelab.tuning.memory tunelab.tuning.options tunelab.tuning.profile"
        " tunelab.tuning.progress tunelab.tuning.site tunelab.tuning.survey tunelab.supervision tunelab.stores"
        " tunelab.study tunelab.liveness tunelab.locations"
        " tunelab.space tunelab.space_template tunelab.foreign tunelab.records tunelab.config"
        " tunelab.shared_options tunelab.yaml_files",
    ),
    Room(
        "tunelab.doctor",
        "is this machine fit: checks that give findings, run in processes that can be given up; nothing is printed",
        "tunelab.tuning.cluster_check tunelab.tuning.node_findings tunelab.tuning.hardware tunelab.tuning.preflight"
        " tunelab.tuning.survey tunelab.tuning.ray_token"
        " tunelab.tuning.ray_home tunelab.tuning.site tunelab.models.kernels tunelab.data tunelab.study"
        " tunelab.journal tunelab.capacity tunelab.config",
        "torch",
    ),
    Room(
        "tunelab.dashboards",
        "a study in a browser: a page, TensorBoard, and who is let in; on the loopback interface, reading alone",
        "tunelab.study tunelab.ray_address",
    ),
    Room(
        "tunelab.analysis",
        "after the run: rank, plot, report, retrain, ablate, profile, use a model. Functions; not needed by a worker",
        "tunelab.tuning.runner tunelab.tuning.config_list tunelab.tuning.profile tunelab.tuning.probes"
        " tunelab.tuning.hardware tunelab.tuning.site"
        " tunelab.tuning.progress tunelab.tuning.options tunelab.tuning.objectives tunelab.tuning.importances"
        " tunelab.training tunelab.summary tunelab.study tunelab.liveness tunelab.journal"
        " tunelab.standings tunelab.noise tunelab.space tunelab.foreign tunelab.models tunelab.data tunelab.records"
        " tunelab.variants tunelab.capacity tunelab.config tunelab.tuning.draws"
        " tunelab.record_checks tunelab.yaml_files",
        "torch",
    ),
    Room(
        "tunelab.__init__",
        "the public names, each imported when it is first asked for",
        "tunelab.tuning.extend tunelab.tuning.runner tunelab.study tunelab.records tunelab.config",
    ),
    Room(
        "tunelab.tuning.extend",
        "more trials, epochs or trials by hand for a study that was begun",
        "tunelab.tuning.runner tunelab.tuning.lineage tunelab.tuning.prospect tunelab.tuning.preflight"
        " tunelab.tuning.grid tunelab.tuning.grid_files tunelab.tuning.options tunelab.study tunelab.records"
        " tunelab.config tunelab.tuning.room tunelab.tuning.site",
    ),
    Room(
        "tunelab.tuning.runner",
        "a search from its options to its end: space, check, record, Ray",
        "tunelab.tuning.lineage tunelab.tuning.memory tunelab.tuning.grid tunelab.tuning.execute"
        " tunelab.tuning.cluster_check tunelab.tuning.prospect tunelab.tuning.preflight tunelab.tuning.progress"
        " tunelab.tuning.forecast tunelab.tuning.hardware tunelab.tuning.slots tunelab.tuning.deadline"
        " tunelab.tuning.repeats tunelab.tuning.searcher tunelab.tuning.sources tunelab.tuning.stopping"
        " tunelab.tuning.options tunelab.tuning.site tunelab.tuning.survey tunelab.supervision tunelab.study"
        " tunelab.stores tunelab.locations tunelab.journal tunelab.space tunelab.models.check"
        " tunelab.data tunelab.records tunelab.config",
    ),
    Room(
        "tunelab.tuning.config_list",
        "'run these configs': retraining, ablation and repeats on the engine of the search",
        "tunelab.tuning.packing tunelab.tuning.execute tunelab.tuning.cluster_check tunelab.tuning.prospect"
        " tunelab.tuning.sharing tunelab.tuning.preflight tunelab.tuning.survey tunelab.tuning.hardware"
        " tunelab.tuning.slots tunelab.tuning.sources"
        " tunelab.tuning.stopping tunelab.tuning.options tunelab.tuning.site tunelab.study tunelab.config",
    ),
    Room(
        "tunelab.tuning.cluster_check",
        "looks at all nodes of a cluster, and refuses a search where trials would fail on some of them",
        "tunelab.tuning.node_checks tunelab.tuning.node_visit tunelab.tuning.node_findings"
        " tunelab.tuning.node_versions tunelab.tuning.nodes tunelab.tuning.ray_cluster"
        " tunelab.tuning.ray_home tunelab.tuning.site tunelab.tuning.survey tunelab.config",
    ),
    Room(
        "tunelab.tuning.node_checks",
        "what is not fit on the nodes of a cluster: facts in, findings out",
        "tunelab.tuning.node_findings tunelab.tuning.node_versions tunelab.tuning.nodes tunelab.tuning.ray_home"
        " tunelab.capacity",
    ),
    Room(
        "tunelab.tuning.node_visit",
        "a visit to all nodes of a cluster, to hear what they tell and to try out what trials need",
        "tunelab.tuning.node_facts tunelab.tuning.nodes tunelab.tuning.ray_home tunelab.config",
        "ray",
    ),
    Room(
        "tunelab.tuning.node_facts",
        "what a node of a cluster tells of itself; sent along as code, so that it runs where tunelab is missing",
        "tunelab.tuning.roll_call tunelab.tuning.worker tunelab.data tunelab.capacity tunelab.config",
        "ray",
    ),
    Room(
        "tunelab.tuning.packing",
        "how a list of trainings shares the machine, measured where there is a choice",
        "tunelab.tuning.sharing tunelab.tuning.calibrate tunelab.tuning.quota tunelab.tuning.probes"
        " tunelab.tuning.fleet tunelab.tuning.hardware tunelab.tuning.slots tunelab.tuning.options tunelab.study"
        " tunelab.records tunelab.capacity tunelab.config",
    ),
    Room(
        "tunelab.tuning.profile",
        "what one training takes with other batch sizes, devices and threads, each in a process of its own",
        "tunelab.tuning.prospect tunelab.tuning.sharing tunelab.tuning.preflight tunelab.tuning.probes"
        " tunelab.tuning.hardware"
        " tunelab.tuning.slots tunelab.tuning.options tunelab.study tunelab.space tunelab.data tunelab.records"
        " tunelab.config"
        " tunelab.capacity",
    ),
    Room(
        "tunelab.tuning.execute",
        "one run of an engine on Ray, from what is planned to its end or a pause",
        "tunelab.tuning.progress tunelab.tuning.forecast tunelab.tuning.ray_tune tunelab.tuning.ray_home"
        " tunelab.tuning.slots tunelab.tuning.listeners tunelab.tuning.engine tunelab.tuning.memory_room"
        " tunelab.tuning.testimony tunelab.tuning.sessions tunelab.tuning.keeping tunelab.tuning.low_space"
        " tunelab.tuning.repeats tunelab.tuning.deadline tunelab.tuning.stopping tunelab.tuning.searcher"
        " tunelab.tuning.sources tunelab.tuning.options tunelab.tuning.guard tunelab.tuning.outposts"
        " tunelab.tuning.ray_metrics tunelab.summary"
        " tunelab.study tunelab.tuning.memory_guard tunelab.tuning.ray_cluster"
        " tunelab.tuning.site tunelab.tuning.mirror tunelab.liveness tunelab.journal tunelab.records",
    ),
    Room(
        "tunelab.tuning.mirror",
        "brings a study into its object store while it is searched, and keeps its lease",
        "tunelab.tuning.engine tunelab.stores tunelab.study tunelab.journal tunelab.records",
    ),
    Room(
        "tunelab.tuning.lineage",
        "what a search that was changed takes over from what it was",
        "tunelab.tuning.memory tunelab.tuning.prospect tunelab.tuning.grid tunelab.tuning.preflight"
        " tunelab.tuning.model_sampler tunelab.tuning.repeats tunelab.tuning.searcher tunelab.tuning.sources"
        " tunelab.tuning.hardware"
        " tunelab.tuning.options tunelab.study tunelab.standings tunelab.noise tunelab.space tunelab.foreign"
        " tunelab.data tunelab.records tunelab.config",
    ),
    Room(
        "tunelab.tuning.prospect",
        "what is known of a search before it starts: how it shares the machine, how long it takes",
        "tunelab.tuning.sharing tunelab.tuning.spread tunelab.tuning.fleet"
        " tunelab.tuning.compute tunelab.tuning.preflight tunelab.tuning.progress tunelab.tuning.forecast"
        " tunelab.tuning.simulation tunelab.tuning.calibrate tunelab.tuning.quota tunelab.tuning.probes"
        " tunelab.tuning.speed tunelab.tuning.hardware tunelab.tuning.slots tunelab.tuning.repeats"
        " tunelab.tuning.searcher tunelab.tuning.sources"
        " tunelab.tuning.stopping tunelab.tuning.memory tunelab.tuning.model_sampler tunelab.tuning.grid"
        " tunelab.tuning.grid_files"
        " tunelab.tuning.options tunelab.study tunelab.space tunelab.foreign tunelab.data tunelab.records"
        " tunelab.config tunelab.capacity tunelab.patience tunelab.tuning.room",
    ),
    Room(
        "tunelab.tuning.memory",
        "what earlier studies know, and which configurations of theirs come first",
        "tunelab.tuning.preflight tunelab.tuning.model_sampler tunelab.tuning.outcomes tunelab.tuning.draws"
        " tunelab.tuning.options tunelab.study tunelab.noise tunelab.space tunelab.data tunelab.records tunelab.config",
        "optuna",
    ),
    Room(
        "tunelab.tuning.grid",
        "trials given by hand, checked against the space",
        "tunelab.tuning.grid_files tunelab.tuning.preflight tunelab.tuning.draws tunelab.tuning.options tunelab.space"
        " tunelab.data tunelab.config",
    ),
    Room(
        "tunelab.tuning.grid_files",
        "where trials given by hand are read from: a file, or a grid of the space's own",
        "tunelab.tuning.templates tunelab.space tunelab.yaml_files",
    ),
    Room(
        "tunelab.tuning.templates",
        "complete configurations among trials given by hand",
        "tunelab.summary tunelab.space tunelab.config",
    ),
    Room(
        "tunelab.tuning.preflight",
        "what is refused before a study is made",
        "tunelab.tuning.searcher tunelab.tuning.sources tunelab.tuning.model_sampler tunelab.tuning.options"
        " tunelab.tuning.room tunelab.tuning.ray_home tunelab.study tunelab.space tunelab.models.check tunelab.data"
        " tunelab.config tunelab.capacity",
    ),
    Room(
        "tunelab.tuning.progress",
        "the one live display of a search",
        "tunelab.tuning.forecast tunelab.tuning.engine tunelab.study tunelab.standings tunelab.records",
    ),
    Room(
        "tunelab.tuning.forecast",
        "how long a search takes, before it starts and while it runs",
        "tunelab.tuning.simulation tunelab.tuning.speed tunelab.records",
    ),
    Room(
        "tunelab.tuning.sessions",
        "the trials of a study as TensorBoard's table compares them",
        "tunelab.training tunelab.records",
    ),
    Room(
        "tunelab.tuning.low_space",
        "space that runs out while a search runs",
        "tunelab.tuning.room tunelab.tuning.engine tunelab.journal tunelab.records tunelab.capacity",
    ),
    Room(
        "tunelab.tuning.room",
        "how many bytes a search will need",
        "tunelab.tuning.options tunelab.records tunelab.capacity",
    ),
    Room(
        "tunelab.tuning.keeping",
        "which ended trials keep their checkpoints",
        "tunelab.training tunelab.records",
    ),
    Room("tunelab.tuning.simulation", "a search played through with random luck; plain arithmetic"),
    Room(
        "tunelab.tuning.memory_room",
        "which trials have room in the memory beside each other, and what their processes may hold",
        "tunelab.tuning.calibrate tunelab.tuning.footprint tunelab.tuning.quota tunelab.tuning.speed"
        " tunelab.tuning.memory_guard tunelab.tuning.losses tunelab.tuning.fleet tunelab.tuning.slots tunelab.records"
        " tunelab.capacity",
    ),
    Room(
        "tunelab.tuning.sharing",
        "how trainings share the machine or the cluster, by what was measured for an earlier study",
        "tunelab.tuning.spread tunelab.tuning.calibrate tunelab.tuning.quota tunelab.tuning.hardware"
        " tunelab.tuning.fleet tunelab.tuning.slots tunelab.tuning.options tunelab.study tunelab.config",
    ),
    Room(
        "tunelab.tuning.spread",
        "how a search is spread over the nodes of a cluster: threads and GPUs of a trial, and trials at once",
        "tunelab.tuning.calibrate tunelab.tuning.quota tunelab.tuning.hardware tunelab.tuning.fleet"
        " tunelab.tuning.slots tunelab.tuning.options tunelab.tuning.roll_call",
    ),
    Room(
        "tunelab.tuning.compute",
        "in which precision and memory order this machine computes fastest, measured once and kept",
        "tunelab.tuning.calibrate tunelab.tuning.probes tunelab.tuning.hardware tunelab.tuning.slots tunelab.space"
        " tunelab.data tunelab.config",
    ),
    Room(
        "tunelab.tuning.calibrate",
        "how many trials at once are fastest and fit, by measurement",
        "tunelab.tuning.quota tunelab.tuning.probes tunelab.tuning.slots tunelab.tuning.footprint tunelab.tuning.speed"
        " tunelab.config",
    ),
    Room(
        "tunelab.tuning.survey",
        "what a cluster has and whether its nodes can run trials, asked by a program of its own",
        "tunelab.tuning.node_findings tunelab.tuning.node_versions tunelab.tuning.nodes tunelab.tuning.roll_call"
        " tunelab.tuning.ray_token tunelab.tuning.site tunelab.tuning.fleet",
    ),
    Room(
        "tunelab.tuning.node_versions",
        "which versions the nodes of a cluster must have: the one list, for a search and for the doctor",
        "tunelab.tuning.node_findings tunelab.tuning.nodes",
    ),
    Room("tunelab.tuning.node_findings", "what is found on the nodes of a cluster, and how it is told; plain data"),
    Room("tunelab.tuning.nodes", "the nodes of a cluster, and what they told of themselves; plain data"),
    Room("tunelab.tuning.ray_token", "whether a Ray cluster lets anybody in, and the warning of it"),
    Room("tunelab.tuning.probes", "the processes that measure, started, asked together, and never left behind"),
    Room(
        "tunelab.tuning.footprint",
        "what a trial takes of memory, from what others took; plain arithmetic",
        "tunelab.tuning.speed",
    ),
    Room("tunelab.tuning.speed", "seconds per epoch of a configuration; plain arithmetic"),
    Room(
        "tunelab.tuning.hardware",
        "what this machine has, and the ways to divide it among trials",
        "tunelab.tuning.slots tunelab.tuning.options tunelab.tuning.roll_call tunelab.training",
        "torch",
    ),
    Room(
        "tunelab.tuning.ray_tune",
        "runs an engine's trials on Ray Tune",
        "tunelab.tuning.ray_train"
        " tunelab.tuning.ray_pieces tunelab.tuning.ray_cluster tunelab.tuning.ray_errors tunelab.tuning.ray_home"
        " tunelab.tuning.survivors"
        " tunelab.tuning.worker tunelab.tuning.engine tunelab.tuning.guard tunelab.tuning.memory_guard"
        " tunelab.tuning.losses tunelab.tuning.slots tunelab.tuning.site tunelab.foreign tunelab.records"
        " tunelab.config tunelab.ray_address",
        "ray",
    ),
    Room(
        "tunelab.tuning.ray_metrics",
        "the numbers of a search among Ray's metrics",
        "tunelab.records",
        "ray",
    ),
    Room(
        "tunelab.tuning.ray_train",
        "runs an engine's trials on Ray Train, each by several processes together",
        "tunelab.tuning.ray_pieces tunelab.tuning.member tunelab.tuning.engine tunelab.tuning.losses"
        " tunelab.tuning.slots tunelab.records",
        "ray",
    ),
    Room(
        "tunelab.tuning.guard",
        "everything that watches over a search while it runs",
        "tunelab.tuning.ray_watch tunelab.tuning.watchdog tunelab.tuning.machine tunelab.tuning.losses"
        " tunelab.tuning.deadline tunelab.liveness",
    ),
    Room(
        "tunelab.tuning.ray_watch",
        "sees to it that Ray answers, and ends in order where it does not",
        "tunelab.supervision tunelab.tuning.watchdog tunelab.tuning.losses tunelab.training tunelab.capacity",
    ),
    Room(
        "tunelab.supervision",
        "a small process that starts a search again that died or hangs; without torch and Ray",
        "tunelab.tuning.watchdog tunelab.tuning.machine tunelab.tuning.options tunelab.liveness",
    ),
    Room(
        "tunelab.tuning.watchdog",
        "sees to it that no trial hangs unnoticed",
        "tunelab.tuning.machine tunelab.tuning.losses tunelab.tuning.deadline tunelab.training tunelab.noise"
        " tunelab.records tunelab.files",
    ),
    Room(
        "tunelab.tuning.outposts",
        "the nodes of a cluster as the driver sees them: what their trials beat, and which of them are gone",
        "tunelab.tuning.outpost tunelab.tuning.machine tunelab.tuning.memory_guard tunelab.tuning.losses"
        " tunelab.training",
        "ray",
    ),
    Room(
        "tunelab.tuning.ray_cluster",
        "joins a Ray cluster that somebody else has started",
        "tunelab.tuning.ray_home tunelab.tuning.site tunelab.tuning.fleet tunelab.tuning.slots"
        " tunelab.tuning.roll_call",
        "ray",
    ),
    Room(
        "tunelab.tuning.ray_pieces",
        "the searcher, scheduler and stopper that Ray Tune asks, each passing the question on to the engine",
        "tunelab.tuning.engine tunelab.tuning.losses tunelab.records",
        "ray",
    ),
    Room(
        "tunelab.tuning.testimony",
        "whether the process of a trial is gone for want of memory: what the driver finds out about it",
        "tunelab.tuning.memory_guard tunelab.tuning.losses tunelab.records tunelab.capacity",
    ),
    Room(
        "tunelab.tuning.member",
        "what Ray Train runs on a node: one of several processes that train a trial together",
        "tunelab.tuning.worker tunelab.training tunelab.data tunelab.records",
        "ray torch",
    ),
    Room(
        "tunelab.tuning.worker",
        "the class that Ray runs on a node: one trial after another, in one process",
        "tunelab.tuning.outpost tunelab.tuning.trial_mirror tunelab.tuning.memory_guard tunelab.tuning.quota"
        " tunelab.training tunelab.foreign tunelab.records tunelab.config"
        " tunelab.capacity tunelab.credentials",
        "ray",
    ),
    Room(
        "tunelab.tuning.outpost",
        "the actor that stands on each node of a cluster: sees the trials there, and has the hands for them",
        "tunelab.tuning.machine tunelab.tuning.memory_guard tunelab.tuning.ray_home tunelab.training tunelab.capacity",
        "ray",
    ),
    Room(
        "tunelab.tuning.ray_home",
        "where Ray lives while a search runs: its start and end, its private folder, its settings",
        "tunelab.tuning.survivors tunelab.tuning.slots tunelab.capacity",
        "ray",
    ),
    Room(
        "tunelab.tuning.machine",
        "one machine on which trials run: what their processes tell there, and what can be done to them",
        "tunelab.training",
    ),
    Room(
        "tunelab.tuning.trial_mirror",
        "brings a trial's folder into the study's object store beside the training, and from there",
        "tunelab.training tunelab.stores tunelab.liveness tunelab.credentials",
    ),
    Room(
        "tunelab.tuning.engine",
        "what happens next in a search, without Ray: proposals, results and ends, each recorded before it is acted on",
        "tunelab.tuning.repeats tunelab.tuning.searcher tunelab.tuning.sources tunelab.tuning.stopping"
        " tunelab.tuning.losses tunelab.tuning.listeners tunelab.tuning.deadline tunelab.tuning.turns"
        " tunelab.tuning.options tunelab.tuning.objectives tunelab.study tunelab.journal"
        " tunelab.noise"
        " tunelab.records tunelab.config",
    ),
    Room(
        "tunelab.tuning.turns",
        "what happens in one turn of a search: on the disk in one write, before anything follows from it",
        "tunelab.journal tunelab.records",
    ),
    Room(
        "tunelab.tuning.ray_errors",
        "errors of Ray that end a trial, in place of the whole search",
        "tunelab.tuning.losses",
        "ray",
    ),
    Room(
        "tunelab.tuning.losses",
        "what becomes of a trial whose process is gone, and of a search in which trials fail",
        "tunelab.records",
    ),
    Room(
        "tunelab.tuning.memory_guard",
        "ends a trial's process that takes too much memory, and writes down why",
        "tunelab.tuning.slots tunelab.files tunelab.capacity",
    ),
    Room("tunelab.tuning.listeners", "who is told of what happens in a search", "tunelab.records"),
    Room("tunelab.tuning.survivors", "ends what a killed search would leave running; a program of its own"),
    Room(
        "tunelab.tuning.roll_call",
        "asks each node of a cluster what it has: a program of its own, whose code on the nodes needs no tunelab",
        heavy="ray",
    ),
    Room(
        "tunelab.tuning.site",
        "where a search runs: this machine or a Ray cluster, with a dashboard or without",
        "tunelab.tuning.fleet",
    ),
    Room("tunelab.tuning.fleet", "the nodes of a cluster, and how many trials they carry", "tunelab.tuning.slots"),
    Room(
        "tunelab.tuning.quota",
        "what a bound on memory leaves for a search, its trials and their images; plain arithmetic",
        "tunelab.tuning.slots tunelab.capacity",
    ),
    Room("tunelab.tuning.slots", "how the machine is shared: trials at once, and what each of them is given"),
    Room(
        "tunelab.tuning.searcher",
        "where configurations come from: a space sampled by Optuna, or a list",
        "tunelab.tuning.sources tunelab.tuning.ledger tunelab.tuning.draws tunelab.tuning.model_sampler"
        " tunelab.tuning.candidates tunelab.tuning.objectives tunelab.space tunelab.records tunelab.config",
        "optuna",
    ),
    Room(
        "tunelab.tuning.sources",
        "what a search takes its configurations from; the simplest such source, a list",
        "tunelab.tuning.objectives tunelab.records tunelab.config",
    ),
    Room(
        "tunelab.tuning.ledger",
        "an Optuna study under tunelab's numbers, and the journal that Optuna's dashboard opens",
        "tunelab.tuning.objectives tunelab.records",
        "optuna",
    ),
    Room(
        "tunelab.tuning.optuna_view",
        "Optuna's dashboard on the journal of a study, which it cannot write",
        heavy="optuna",
    ),
    Room(
        "tunelab.tuning.model_sampler",
        "proposals of a model of all trials so far",
        "tunelab.tuning.surrogate tunelab.tuning.candidates tunelab.tuning.outcomes tunelab.tuning.objectives"
        " tunelab.tuning.draws tunelab.records tunelab.config",
        "optuna",
    ),
    Room(
        "tunelab.tuning.candidates",
        "drawn configurations, and the rows of numbers that a model knows configurations by",
        "tunelab.tuning.draws tunelab.records",
        "optuna",
    ),
    Room("tunelab.tuning.surrogate", "a model of what configurations come to and what they cost; plain arithmetic"),
    Room(
        "tunelab.tuning.outcomes",
        "what is to be learnt from trials of different lengths",
        "tunelab.tuning.stopping tunelab.noise tunelab.records",
    ),
    Room(
        "tunelab.tuning.draws",
        "configurations drawn without a sampler, and configurations as rows of numbers",
        heavy="optuna",
    ),
    Room(
        "tunelab.tuning.importances",
        "what has to do with being among the best: Optuna's PED-ANOVA, held against chance",
        heavy="optuna",
    ),
    Room(
        "tunelab.tuning.repeats",
        "when a configuration is trained again with another seed",
        "tunelab.tuning.race tunelab.noise tunelab.records tunelab.config",
    ),
    Room("tunelab.tuning.stopping", "when a trial stops early; plain arithmetic"),
    Room(
        "tunelab.tuning.deadline",
        "when a search is to pause, and how long trials take until then",
        "tunelab.noise tunelab.records",
    ),
    Room(
        "tunelab.tuning.race",
        "which finalist is trained again, and who has won; plain arithmetic",
        "tunelab.standings tunelab.noise",
    ),
    Room(
        "tunelab.tuning.objectives", "several goals: costs, fronts, and one number; plain arithmetic", "tunelab.records"
    ),
    Room("tunelab.tuning.options", "what a search is asked for, checked", "tunelab.config tunelab.capacity"),
    Room("tunelab.tuning.__init__", "the only home of Ray and Optuna"),
    Room(
        "tunelab.search_spaces",
        "one file = one space = one name on the command line; not needed by a worker",
        "tunelab.space tunelab.models.check tunelab.config",
    ),
    Room(
        "tunelab.training",
        "one trial: data, model, epochs, checkpoints; no Ray, no Optuna",
        "tunelab.models tunelab.data tunelab.records tunelab.config tunelab.capacity",
        "torch",
    ),
    Room(
        "tunelab.models",
        "blocks, networks, their kernels for processors, and the check of a network before it costs time",
        "tunelab.foreign tunelab.config",
        "torch numba",
    ),
    Room(
        "tunelab.data",
        "images: found, decoded once, divided, cached, batched, augmented, streamed where they do not fit",
        "tunelab.config tunelab.capacity",
        "torch torchvision",
    ),
    Room(
        "tunelab.summary",
        "what a study writes for people beside its tables: a summary, templates of trials",
        "tunelab.study tunelab.records",
    ),
    Room(
        "tunelab.stores",
        "object stores through fsspec: the copy of a study, who writes it, what is fetched from it",
        "tunelab.study tunelab.liveness tunelab.journal tunelab.locations tunelab.credentials",
    ),
    Room(
        "tunelab.study",
        "a study is a folder; opens in a moment, without torch or Ray",
        "tunelab.standings tunelab.noise tunelab.liveness tunelab.journal tunelab.replay"
        " tunelab.study_checks tunelab.records tunelab.config",
    ),
    Room(
        "tunelab.standings",
        "how configurations stand: means of runs, intervals, ties, the luck of the chosen taken off",
        "tunelab.noise tunelab.records",
    ),
    Room("tunelab.noise", "by how much two trainings of one configuration differ; plain arithmetic", "tunelab.records"),
    Room("tunelab.liveness", "signs of life of a process that searches, in the study's folder"),
    Room("tunelab.journal", "the record on the disk: checked lines, one writer"),
    Room(
        "tunelab.space",
        "what a search space is, and how one is found",
        "tunelab.foreign tunelab.patience tunelab.config",
    ),
    Room("tunelab.patience", "what takes too long is told of; foreign code that does not return is broken off"),
    Room("tunelab.foreign", "code of the user's own: found, trusted, run, and named where it fails", "tunelab.config"),
    Room("tunelab.space_template", "the files that `tunelab new-space` writes"),
    Room("tunelab.replay", "from the events of a record to its trials", "tunelab.record_checks tunelab.records"),
    Room("tunelab.record_checks", "what a record must hold to be believed, whoever wrote it", "tunelab.records"),
    Room("tunelab.ray_address", "where Ray's dashboard of a running search is: a small file in the study"),
    Room("tunelab.study_checks", "what study.json must hold to be believed, whoever wrote it"),
    Room("tunelab.records", "what happened: metrics, trials, statuses", "tunelab.config"),
    Room("tunelab.variants", "what an ablation compares: plain data", "tunelab.config"),
    Room("tunelab.config", "what a trial is made of: frozen data, to JSON and back"),
    Room("tunelab.capacity", "amounts of memory: how they are written, and how much is free"),
    Room(
        "tunelab.shared_options",
        "options that several commands have, among them a YAML file of options",
        "tunelab.locations tunelab.yaml_files",
    ),
    Room(
        "tunelab.locations",
        "where studies lie: folders, and URIs of stores without credentials",
        "tunelab.credentials",
    ),
    Room("tunelab.credentials", "hides credentials in whatever is told or written down"),
    Room("tunelab.yaml_files", "YAML of anybody's, refused where it would grow"),
    Room("tunelab.errors", "the errors raised on purpose"),
    Room("tunelab.files", "writing files so that nobody sees half of one"),
]
HEAVY = {"ray", "optuna", "torch", "torchvision", "numba"}
# The two packages that nothing imports statically, and the modules that load by name what they may not import.
BY_NAME_ONLY = ("tunelab.search_spaces", "tunelab.analysis")
LOADERS = ("tunelab.__init__", "tunelab.cli", "tunelab.commands", "tunelab.space", "tunelab.foreign")
LOADING_CALLS = {"import_module", "__import__", "spec_from_file_location", "run_module", "run_path"}
LONGEST = 400
# Where a distribution has another name than what is imported from it.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "grpc": "grpcio",
    "optuna_dashboard": "optuna-dashboard",
    "pydantic_core": "pydantic-core",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Required without an import statement: loaded by name.
LOADED_BY_NAME = {"torchvision"}


@dataclass(frozen=True)
class Import:
    """One imported thing as a dotted name, such as "torch" or "tunelab.config.TrialConfig", and where it stands."""

    target: str
    line: int
    relative: bool
    runtime: bool


def inside(module: str, package: str) -> bool:
    """True if `module` is `package` or lies below it."""
    return module == package or module.startswith(package + ".")


def room_of(module: str) -> Room | None:
    """The room that a module lives in; a package's own file is called `package.__init__`."""
    return next((room for room in ROOMS if inside(module, room.name)), None)


def called_name(call: ast.Call) -> str:
    """The last part of the name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Every import in the source, also inside functions; relative ones resolved."""
    tree = ast.parse(source)
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for_types = {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, relative=False, runtime=node not in for_types)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            for alias in node.names:
                target = ".".join(part for part in (base, node.module, alias.name) if part)
                yield Import(target, node.lineno, relative=node.level > 0, runtime=node not in for_types)


def module_of(target: str, modules: Mapping[str, str]) -> str:
    """The module that holds an imported name: the longest part of it that is one, else the name as it is."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in modules:
            return name
        if f"{name}.__init__" in modules:
            return f"{name}.__init__"
    return target


def wrong_import(module: str, room: Room, item: Import, target: str) -> str:
    """What is wrong with one import, "" if nothing; `target` is the module that holds what is imported."""
    top = item.target.split(".")[0]
    if top in HEAVY and top not in room.heavy.split():
        return f"imports {top}, which {room.name} may not"
    if f"tunelab.{top}" in BY_NAME_ONLY:
        return f"imports {item.target} by its folder's name; it is installed as tunelab.{top}"
    if top != "tunelab" or item.target == "tunelab.__version__":
        return ""
    own = next((name for name in BY_NAME_ONLY if inside(module, name)), None)
    other = next((name for name in BY_NAME_ONLY if inside(target, name)), None)
    if other != own and other is not None:
        return f"imports {target}; {other} is only ever loaded by name"
    if own is not None and item.relative != (other == own):
        return f"imports {target}: siblings are imported relatively, the rest of tunelab absolutely"
    if module == "tunelab.__init__" and item.runtime:
        return f"imports {target} at once; public names are imported when they are first asked for"
    if not any(inside(target, name) for name in (room.name, "tunelab.errors", "tunelab.files", *room.imports.split())):
        return f"imports {target}, which {room.name} may not"
    return ""


def wrong_shape(module: str, source: str) -> Iterator[str]:
    """What is wrong with a module apart from its imports."""
    lines = source.count("\n")
    if lines > LONGEST:
        yield f"{module} has {lines} lines; the limit is {LONGEST}"
    if module.split(".")[-1] == "utils":
        yield f"{module}: a module is named for what it does"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and any(inside(module, name) for name in BY_NAME_ONLY):
            yield f"{module}:{node.lineno} defines the class {node.name}; these folders hold functions and constants"
        if not isinstance(node, ast.Call) or called_name(node) not in LOADING_CALLS:
            continue
        literal = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "tunelab"
        if not any(inside(module, name) for name in LOADERS) and inside(str(literal), "tunelab"):
            yield f"{module}:{node.lineno} loads by name, which only {', '.join(LOADERS)} may"


def violations(modules: Mapping[str, str]) -> list[str]:
    """What is wrong with these modules (name -> source), one line each."""
    found = []
    for module, source in modules.items():
        room = room_of(module)
        if room is None:
            found.append(f"{module} belongs to no room: give it one in tests/test_architecture.py")
            continue
        for item in imports_of(module, source):
            wrong = wrong_import(module, room, item, module_of(item.target, modules))
            if wrong:
                found.append(f"{module}:{item.line} {wrong}")
        found += wrong_shape(module, source)
    return found


def import_cycle(modules: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a ring when they are loaded, [] if there are none."""
    graph = {
        module: {module_of(item.target, modules) for item in imports_of(module, source) if item.runtime} - {module}
        for module, source in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def sources() -> dict[str, str]:
    """All modules of the project under their installed names."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts))] = path.read_text(encoding="utf-8")
    return found


def test_the_code_keeps_to_the_map() -> None:
    found = violations(sources())
    assert not found, "\n" + "\n".join(found)


def test_no_modules_import_each_other_in_a_ring() -> None:
    assert import_cycle(sources()) == []


def test_arrows_only_point_down() -> None:
    for place, room in enumerate(ROOMS):
        for name in room.imports.split():
            meant = [at for at, other in enumerate(ROOMS) if inside(other.name, name) or inside(name, other.name)]
            assert meant, f"{room.name} may import {name}, which is no room"
            assert all(at >= place for at in meant), f"{room.name} may import {name}, which stands above it"


def test_ray_and_optuna_are_at_home_in_tuning_alone() -> None:
    for room in ROOMS:
        if {"ray", "optuna"} & set(room.heavy.split()):
            assert inside(room.name, "tunelab.tuning")


def test_the_reading_side_may_touch_nothing_heavy() -> None:
    for name in (
        "tunelab.cli",
        "tunelab.commands",
        "tunelab.__init__",
        "tunelab.config",
        "tunelab.records",
        "tunelab.study",
        "tunelab.space",
    ):
        room = room_of(name)
        assert room is not None
        assert room.heavy == ""


def test_rooms_have_a_purpose_and_one_line_each() -> None:
    names = [room.name for room in ROOMS]
    assert len(set(names)) == len(names)
    assert all(room.purpose and "\n" not in room.purpose for room in ROOMS)


def test_setup_cfg_lists_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["packages"].split()
    lying = {module.removesuffix(".__init__") for module in sources() if module.endswith(".__init__")}
    holding = {module.rpartition(".")[0] for module in sources()}
    assert sorted(listed) == sorted(lying)
    assert holding == lying, "a folder with modules has an __init__.py"
    mapping = dict(line.split(" = ") for line in config["options"]["package_dir"].strip().splitlines())
    assert mapping == {package: folder for folder, package in FOLDERS.items() if package != folder}


def test_setup_cfg_requires_what_is_imported() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].split("\n")
    required = {re.split(r"[^\w-]", line)[0] for line in lines if line}
    imported = {
        item.target.split(".")[0] for module, source in sources().items() for item in imports_of(module, source)
    }
    foreign = {DISTRIBUTIONS.get(name, name) for name in imported - sys.stdlib_module_names - {"tunelab"}}
    extras = [line for name in ("onnx", "dashboard") for line in config["options.extras_require"][name].split("\n")]
    extra = {re.split(r"[^\w-]", line)[0] for line in extras if line}
    assert foreign - required - extra == set()
    assert required - foreign <= LOADED_BY_NAME


def test_no_module_has_the_name_of_a_public_function() -> None:
    modules = sources()
    public = ast.literal_eval(
        next(
            node.value
            for node in ast.parse(modules["tunelab.__init__"]).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
    )
    assert public
    beside = {module.split(".")[1] for module in modules}  # importing tunelab.search would replace tunelab.search
    assert not beside & set(public)


# The checker itself, on sources that break one rule each, and on ones that look alike and break none.

FLOOR = {"tunelab.__init__": "", "tunelab.config": "", "tunelab.data.__init__": "", "tunelab.models.check": ""}
FLOOR |= {"tunelab.analysis.__init__": "", "tunelab.analysis.rank": "", "tunelab.study": "", "tunelab.cli": ""}
FLOOR |= {"tunelab.tuning.runner": "", "tunelab.search_spaces.arch": "", "tunelab.training.loop": ""}
FLOOR |= {"tunelab.tuning.engine": "", "tunelab.tuning.deadline": ""}


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("tunelab.config", "import torch", "imports torch"),
        ("tunelab.records", "def f():\n    import ray.tune", "records:2 imports ray"),
        (
            "tunelab.study",
            "from pathlib import Path\nfrom tunelab.training.loop import fit",
            "study:2 imports tunelab.training",
        ),
        ("tunelab.study", "from torch import nn", "imports torch"),
        ("tunelab.training.loop", "import optuna", "imports optuna"),
        ("tunelab.tuning.stopping", "import ray", "imports ray"),
        ("tunelab.data.cache", "from tunelab.models import check", "imports tunelab.models.check"),
        ("tunelab.data.cache", "from ..models.check import check", "imports tunelab.models.check"),
        ("tunelab.data.__init__", "from ..models.check import check", "imports tunelab.models.check"),
        ("tunelab.models.blocks", "import tunelab.data", "imports tunelab.data.__init__"),
        ("tunelab.models.blocks", "from tunelab import search", "imports tunelab.__init__"),
        ("tunelab.cli", "from tunelab.analysis import rank", "only ever loaded by name"),
        ("tunelab.tuning.runner", "def f():\n    import tunelab.search_spaces.arch", "only ever loaded by name"),
        ("tunelab.analysis.retrain", "from tunelab.analysis.rank import rank", "siblings are imported relatively"),
        ("tunelab.analysis.retrain", "from ..study import Study", "siblings are imported relatively"),
        ("tunelab.analysis.retrain", "from tunelab.search_spaces import arch", "only ever loaded by name"),
        ("tunelab.analysis.retrain", "from analysis.rank import rank", "by its folder's name"),
        ("tunelab.analysis.retrain", "class Card:\n    pass", "defines the class Card"),
        ("tunelab.search_spaces.arch", "from tunelab.training.loop import fit", "imports tunelab.training.loop"),
        (
            "tunelab.training.loop",
            "import importlib\nimportlib.import_module('tunelab.analysis')",
            "loop:2 loads by name",
        ),
        ("tunelab.training.loop", "from importlib import import_module\nimport_module(name)", "loads by name"),
        ("tunelab.__init__", "from tunelab.study import Study", "when they are first asked for"),
        ("tunelab.__init__", "from tunelab.analysis.rank import rank", "only ever loaded by name"),
        ("tunelab.tuning.helpers", "", "belongs to no room"),
        ("tunelab.data.utils", "", "named for what it does"),
        ("tunelab.data.cache", "x = 1\n" * 401, "has 401 lines"),
    ],
)
def test_the_checker_finds(module: str, source: str, expected: str) -> None:
    found = violations({**FLOOR, module: source})
    assert len(found) == 1, found
    assert expected in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tunelab.tuning.worker", "import ray\nfrom tunelab.training.loop import fit"),
        (
            "tunelab.tuning.runner",
            "from tunelab.models.check import check\nfrom tunelab.tuning.deadline import Deadline",
        ),
        ("tunelab.models.blocks", "import torch\nfrom tunelab import __version__\nfrom . import check"),
        ("tunelab.data.cache", "import importlib\nimportlib.import_module('torchvision.datasets')"),
        ("tunelab.cli", "import importlib\nimportlib.import_module('tunelab.analysis.rank')\nimport tunelab"),
        (
            "tunelab.analysis.retrain",
            "from tunelab.study import Study\nfrom .rank import rank\nfrom . import rank as r",
        ),
        ("tunelab.search_spaces.lenet", "from tunelab.models import check\nfrom . import arch"),
        (
            "tunelab.__init__",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tunelab.study import Study",
        ),
        ("tunelab.data.cache", "x = 1\n" * 400),
    ],
)
def test_the_checker_lets_pass(module: str, source: str) -> None:
    assert violations({**FLOOR, module: source}) == []


def test_the_checker_finds_a_ring() -> None:
    ring = {"tunelab.data.a": "from tunelab.data import b", "tunelab.data.b": "def f():\n    from . import a"}
    assert set(import_cycle(ring)) == {"tunelab.data.a", "tunelab.data.b"}
    assert import_cycle({**ring, "tunelab.data.b": ""}) == []
