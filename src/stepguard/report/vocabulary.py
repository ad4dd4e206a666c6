"""What actions, fields and words of a rule file mean, for `stepguard explain`."""

from __future__ import annotations

from collections.abc import Mapping

from stepguard.rules.actions import ACTIONS

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

_EXAMPLES: Mapping[str, str] = {
    "skip": "skip: {times: 3}",
    "lower_lr": "lower_lr: {by: 0.5}",
    "rollback": "rollback: {lr: 0.5, times: 2}",
    "restart": "restart: {lr: 0.5, init: lsuv, clip: 1.0, pace: 0.01, seed: 1}; or restart: auto",
}

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
"""Every word that `of_word` explains."""


def of_word(word: str) -> list[tuple[str, str]]:
    """Explain an action or a word of rule files: labels and texts, none for other words."""
    lines: list[tuple[str, str]] = []
    if word in ACTIONS:
        lines += [("action", DEEDS[word]), ("written", _EXAMPLES.get(word, word))]
    if word in _WORDS:
        lines.append(("word", _WORDS[word]))
    return lines
