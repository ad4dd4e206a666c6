"""What actions, fields and words of a rule file mean, for `stepguard explain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stepguard.report.words import listing
from stepguard.rules.actions import ACTIONS
from stepguard.rules.fields import Number
from stepguard.rules.schema import SETTINGS
from stepguard.rules.wording import listed

Lines = Iterator[tuple[str, str]]
"""Labels and texts, from top to bottom."""

DEEDS: Mapping[str, str] = {
    "warn": "say so, and go on",
    "notify": "say so, call the subscribers that asked for alerts, and go on",
    "snapshot": "write a snapshot and the evidence",
    "skip": "leave this optimizer step out",
    "lower_lr": "go on",
    "rollback": "go back to the newest healthy snapshot",
    "restart": "end the attempt; the next begins from nothing",
    "halt": "halt the training",
}
"""What each action does, before its settings."""

_SKIPPED = (
    "PaLM (arXiv 2204.02311) goes on behind the batches of a loss spike; SkipStepOptimizer of OLMo-core"
)

ACTION_LINES: Mapping[str, Mapping[str, str]] = {
    "warn": {
        "changes": "nothing; the diagnosis goes to the terminal, the run file and all subscribers",
        "fits": "what a person should know of, and what may be harmless",
    },
    "notify": {
        "changes": "nothing; calls the functions given to guard.on_notify, whatever else is decided",
        "fits": "what somebody should be woken for",
    },
    "snapshot": {
        "changes": "nothing; all that a rollback brings back is written beside the run file",
        "fits": "what somebody will want to look into afterwards",
    },
    "skip": {
        "changes": "the optimizer step does not happen: weights and optimizer state stay bit for bit, and"
        " small buffers that the forward pass has moved, as of batch norm, go back",
        "asked": "at every step at which the condition holds, until `times` are used up or so many came"
        " `in_a_row`; and while a rollback has its time to show",
        "fits": "single batches: NaN or Inf in a gradient, outliers, a spike",
        "written": "skip: {times: 3}",
        "source": _SKIPPED,
    },
    "lower_lr": {
        "action": "go on with a lower learning rate",
        "changes": "the learning rate of every group, and what the scheduler computes it from; for good",
        "fits": "a loss or gradients that grow slowly, while the weights are still of use",
        "written": "lower_lr: {by: 0.5, times: 3}",
        "source": "Molybog et al. (arXiv 2304.09871) against spikes; AUTOTRAINER (ICSE 2021)",
    },
    "rollback": {
        "changes": "model, optimizer, scheduler, scaler and generators go back to the newest snapshot that"
        " was certified: all of it finite, and no rule that acts fired for long enough after it. The data"
        " goes on, so the batches that did it are left out",
        "without": "a certified snapshot the rung is passed by, and the next one taken",
        "fits": "a run that was healthy and is not any more: a blow-up, NaN in the weights",
        "written": "rollback: {lr: 0.5, times: 2}",
        "source": "PaLM (arXiv 2204.02311): 100 steps back, 200 to 500 batches left out, no spike again",
    },
    "restart": {
        "changes": "the attempt ends before the weights are touched; the next begins from nothing, with the"
        " remedy. `auto`, or no remedy, has it made of what was measured and of what was tried before",
        "needs": "stepguard.supervise or `stepguard run`; with neither the training ends and says why",
        "fits": "a run that began badly and will not recover: a rising crash, dead or saturated layers,"
        " outputs that no longer vary",
        "written": "restart: {lr: 0.5, init: lsuv, clip: 1.0, times: 2}; or restart: auto",
        "source": "fast.ai, lesson 16: stop early and restart, the model will probably never recover;"
        " LSUV: Mishkin and Matas 2016 (arXiv 1511.06422); Kaiming: He et al. 2015 (arXiv 1502.01852);"
        " standardise: LeCun et al. 1998 (Efficient BackProp), Desjardins et al. 2015 (arXiv 1507.00210)",
    },
    "halt": {
        "changes": "the training ends before the weights are touched, with TrainingHalted and its diagnosis;"
        " under `stepguard run` the exit code is 70",
        "fits": "what no restart can cure: a wrong sign of the loss; and the end of a ladder",
    },
}
"""What `explain` tells of each action, line by line, beside what it does and its settings."""

_WORDS: Mapping[str, str] = {
    "step": "in a condition, the number of the training step, from 0; a number that every step has",
    "progress": "in a condition, step / total_steps, 0..1; no value, and so no alert, without total_steps",
    "inf": "in a condition, infinity: a number above all others",
    "nan": "in a condition, no number: no comparison with it holds; nonfinite(x) asks for it",
    "and": "in a condition, true where both sides hold; not known where a side is not known",
    "or": "in a condition, true where one side holds; not known where a side is not known and none holds",
    "not": "in a condition, true where what follows does not hold; not known where that is not known",
    "version": "of a rule file, 1",
    "extends": "packs or files whose rules a file takes over; later ones win",
    "disable": "names of rules of the extended packs to leave out",
    "rules": "the list of a file's rules",
    "name": "of a rule: unique; the name of an extended rule replaces the fields that are given",
    "when": "of a rule: the condition under which it fires",
    "layers": "of a rule: the layers that it looks at, by type, name and not, with globs; default: all",
    "for": "of a rule: how many evaluated steps in a row the condition must hold; default: 1",
    "keep": "of a rule: steps for which it stays firing after the condition stopped holding; default: 0",
    "active": "of a rule: steps, or percent of total_steps, in which it is awake: FROM..TO",
    "severity": "of a rule: info, warning or critical; how it is shown",
    "action": "of a rule: what to do when it fires; an action, or a ladder of actions tried in turn",
    "settle": "of a rule: steps for which the condition must stay clear before an action counts as a cure",
    "times": "of a rung of a ladder: how often it is tried before the next one is",
    "message": "of a rule: what it says, with measured values in braces such as {value:.3g}",
    "advice": "of a rule: cures, as a list",
    "source": "of a rule: where it comes from",
}

VOCABULARY: tuple[str, ...] = (*ACTIONS, *_WORDS)
"""Every word that `of_action` or `of_word` explains."""


def of_action(action: str, users: Sequence[str]) -> Lines:
    """Explain an action; `users` are the rules that take it."""
    lines = dict(ACTION_LINES[action])
    yield "action", lines.pop("action", DEEDS[action])
    written, source = lines.pop("written", action), lines.pop("source", "")
    yield from lines.items()
    for name, kind in ACTIONS[action].kinds.items():
        needed = "" if name in ACTIONS[action].required else "; may be left out"
        expected = kind.expected if isinstance(kind, Number) else listed(getattr(kind, "choices", ()))
        yield name, f"{SETTINGS[name].rstrip('.').lower()}: {expected}{needed}"
    yield "written", written
    if source:
        yield "source", source
    if users:
        yield "taken by", listing(list(users), 12)


def of_word(word: str) -> Lines:
    """Explain a word of rule files that is no action; nothing for other words."""
    if word in _WORDS:
        yield "word", _WORDS[word]
