"""What is decided depends on the frames alone: fed to a fresh engine, they give the live run's verdicts."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from stepguard.engine import Engine
from stepguard.errors import TrainingStopped
from stepguard.recover.attempt import Attempt
from stepguard.recover.recovery import Recovery
from stepguard.recover.supervise import supervise
from stepguard.rules.packs import load_rules

RULES = """
- {name: warm, when: "mean(loss, 20) > 1", for: 5, settle: 10, action: [{lower_lr: {by: 0.9}}, warn]}
- {name: grown, when: "growth(act.std, 15) > 1.02", for: 3, keep: 4}
- {name: half, when: "share(trend(weight.norm, 20) > 2) > 0.4", message: "{layers} of {total}, {layer}"}
- {name: bad, when: nonfinite(loss), settle: 8, action: [{skip: {times: 4}}, halt]}
- {name: spike, when: "spike(grad_norm, 20, by=3)"}
- {name: still, when: all(update.ratio == 0)}
- {name: late, when: step > 40 and metric.score > 0.5, action: [restart, notify]}
"""


class Run:
    """A training with bad and hot steps, and an evaluation now and then."""

    def __init__(self, training: Any, watched: Any, **options: Any) -> None:
        self.guarded = training()
        self.guarded.factors = {20: math.nan, 22: math.inf, 30: 40.0, 41: math.nan}
        self.session = watched(self.guarded, **options)

    def train(self) -> None:
        for step in range(60):
            if step % 15 == 0:
                self.session.guard.log(score=step / 60)
            self.guarded.run(1, self.session.guard.step)


@pytest.mark.parametrize("every", [1, 7, "auto"])
@pytest.mark.parametrize("dry_run", [False, True], ids=["", "dry run"])
def test_the_frames_of_a_training_give_its_changes_and_decisions_once_more(
    training, watched, rules, every, dry_run: bool
) -> None:
    file = rules(RULES)
    run = Run(training, watched, rules=file, every=every, dry_run=dry_run, total_steps=60)
    with suppress(TrainingStopped):
        run.train()
    seen = run.session.seen
    assert len(seen) == (60 if dry_run else 46)
    assert {alert.rule for alert in run.session.guard.alerts} >= {"warm", "bad", "late"}
    again = Recovery(Engine(load_rules(file), seen[0].layers, 60), Attempt(), dry_run=dry_run)
    for live in seen:
        assert repr(again.observe(live.frame)) == repr(live)


def test_the_frames_of_every_attempt_do_too(training, watched, rules) -> None:
    file = rules(RULES)
    runs: list[Run] = []
    begun: list[Attempt] = []

    def train(attempt: Attempt) -> None:
        begun.append(replace(attempt, guards=[]))
        runs.append(Run(training, watched, rules=file))
        runs[-1].train()

    supervise(train, attempts=4)
    assert len(runs) == 3, "one restarted, one that ended, one that should do better"
    for run, attempt in zip(runs, begun, strict=True):
        seen = run.session.seen
        again = Recovery(Engine(load_rules(file), seen[0].layers), attempt)
        assert [repr(again.observe(live.frame)) for live in seen] == [repr(live) for live in seen]
