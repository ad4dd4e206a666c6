from __future__ import annotations

from dataclasses import replace

import pytest

from stepguard.errors import Place, RuleFileError
from stepguard.rules.dump import dump_rules
from stepguard.rules.packs import load_rules, pack_names, read_text_rules
from stepguard.rules.rule import Ruleset

ALL = """
version: 1
rules:
  - name: all-fields
    when: "share(crash(act.std, rise=3, fall=3, within=60)) >= 1e-8 and loss > -1e5"
    layers: {type: [Conv2d], name: "features.*", not: ["*.head", "0*"]}
    for: 3
    keep: 4
    active: 10..33.3%
    severity: info
    action: [{skip: {times: 3}}, warn, {lower_lr: {by: 0.1}}, {restart: {lr: 1e-3, clip: 1.5}}, halt]
    settle: 7
    message: "std {rise:.1f}: it's \\"loud\\", {share:.0%}, Größe"
    advice: ["a: b", "- c", "# d", "1e3", "yes"]
    source: "somewhere: else"
  - name: plain
    when: nonfinite(loss)
    active: 100..
"""


def without_places(rules: Ruleset) -> list[object]:
    return [replace(rule, place=Place("", 0, 0)) for rule in rules.rules]


@pytest.mark.parametrize("name", pack_names())
def test_a_pack_is_the_same_after_a_dump(name: str) -> None:
    rules = load_rules(name)
    assert without_places(read_text_rules(dump_rules(rules), "dump")) == without_places(rules)


def test_every_field_survives_a_dump() -> None:
    rules = read_text_rules(ALL, "all.yaml")
    assert without_places(read_text_rules(dump_rules(rules), "dump")) == without_places(rules)


def test_faults_of_a_text_name_its_label() -> None:
    with pytest.raises(RuleFileError, match=r"label:3:9: .*no such"):
        read_text_rules("version: 1\nrules:\n- name: no such\n  when: loss >> 3\n", "label")
