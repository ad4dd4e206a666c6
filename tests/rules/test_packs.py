from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepguard.errors import RuleFileError
from stepguard.rules.packs import load_rules, pack_names, pack_path
from stepguard.rules.rule import Action, Active, Bound, LayerFilter, Rule

WHOLE = """
version: 1
description: everything that a rule can say
rules:
  - name: whole
    when: share(crash(act.std)) >= 0.5
    layers: {type: [Conv2d, Linear], name: "features.*", not: ["*.head", "3"]}
    for: 2
    keep: 10
    active: 100..30%
    severity: critical
    action:
      - skip: {times: 3}
      - lower_lr: {by: 5e-1}
      - rollback: {lr: 0.5, times: 2}
      - restart: {lr: 2, init: lsuv, clip: 1e-8, seed: 3}
      - restart: auto
      - restart
      - restart: {times: 2}
      - halt
    settle: 50
    message: "std rose {rise:.1f}x"
    advice: [lower the learning rate, "on"]
    source: a lecture
  - {name: bare, when: loss > 5, action: warn, advice: one, layers: {name: 0}}
"""


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def rules_of(*sources: str | Path) -> dict[str, Rule]:
    return {rule.name: rule for rule in load_rules(sources)}


def faults_of(*sources: str | Path) -> list[str]:
    with pytest.raises(RuleFileError) as caught:
        load_rules(sources)
    return [str(problem) for problem in caught.value.problems]


def test_every_field_arrives(tmp_path: Path) -> None:
    rule, bare = load_rules(write(tmp_path, a=WHOLE) / "a.yaml")
    assert rule.condition.text == "share(crash(act.std)) >= 0.5"
    assert rule.layers == LayerFilter(("Conv2d", "Linear"), ("features.*",), ("*.head", "3"))
    assert (rule.hold, rule.keep, rule.settle, rule.severity) == (2, 10, 50, "critical")
    assert rule.active == Active(Bound(100), Bound(30, percent=True))
    assert rule.ladder == (
        Action("skip", {}, 3),
        Action("lower_lr", {"by": 0.5}),
        Action("rollback", {"lr": 0.5}, 2),
        Action("restart", {"lr": 2, "init": "lsuv", "clip": 1e-8, "seed": 3}),
        Action("restart"),
        Action("restart"),
        Action("restart", {}, 2),
        Action("halt"),
    )
    assert rule.message == "std rose {rise:.1f}x"
    assert rule.advice == ("lower the learning rate", "on")
    assert rule.source == "a lecture"
    assert (rule.place.line, rule.place.column) == (5, 5)
    assert (bare.advice, bare.layers.names, bare.ladder) == (("one",), ("0",), (Action("warn"),))


def test_what_a_rule_does_not_say_has_a_default(tmp_path: Path) -> None:
    (rule,) = load_rules(write(tmp_path, a="version: 1\nrules: [{name: r, when: loss > 5}]") / "a.yaml")
    assert (rule.hold, rule.keep, rule.settle, rule.severity) == (1, 0, 20, "warning")
    assert (rule.active, rule.ladder, rule.layers) == (Active(), (Action("warn"),), LayerFilter())


@pytest.mark.parametrize(
    ("text", "active"),
    [
        ("..30%", Active(Bound(0), Bound(30, percent=True))),
        ("100..", Active(Bound(100), Bound(math.inf))),
        ("5%..7.5 %", Active(Bound(5, percent=True), Bound(7.5, percent=True))),
        ("'10 .. 10'", Active(Bound(10), Bound(10))),
        ("0%..100%", Active(Bound(0, percent=True), Bound(100, percent=True))),
    ],
)
def test_ranges_of_steps(text: str, active: Active, tmp_path: Path) -> None:
    write(tmp_path, a=f"version: 1\nrules: [{{name: r, when: loss > 5, active: {text}}}]")
    assert rules_of(tmp_path / "a.yaml")["r"].active == active


BASE = """
version: 1
rules:
  - {name: r, when: loss > 5, for: 3, severity: info, message: "{value}"}
  - {name: s, when: loss > 6}
"""


def test_a_rule_of_an_extending_file_replaces_the_fields_it_sets(tmp_path: Path) -> None:
    own = (
        "version: 1\nextends: base.yaml\n"
        "rules: [{name: r, when: lr > 1, severity: critical}, {name: t, when: lr > 2}]"
    )
    rules = rules_of(write(tmp_path, base=BASE, own=own) / "own.yaml")
    assert list(rules) == ["r", "s", "t"]
    assert (rules["r"].condition.text, rules["r"].hold, rules["r"].severity) == ("lr > 1", 3, "critical")
    assert Path(rules["r"].place.file).name == "own.yaml"
    assert Path(rules["s"].place.file).name == "base.yaml"


def test_a_later_source_goes_over_an_earlier_one(tmp_path: Path) -> None:
    write(tmp_path, base=BASE, over="version: 1\nrules: [{name: s, for: 7}]\ndisable: r")
    rules = rules_of(tmp_path / "base.yaml", tmp_path / "over.yaml")
    assert list(rules) == ["s"]
    assert (rules["s"].condition.text, rules["s"].hold) == ("loss > 6", 7)


def test_a_rule_can_be_disabled_and_written_anew(tmp_path: Path) -> None:
    own = "version: 1\nextends: [base.yaml]\ndisable: [r]\nrules: [{name: r, when: lr > 1}]"
    rules = rules_of(write(tmp_path, base=BASE, own=own) / "own.yaml")
    assert (rules["r"].hold, rules["r"].message) == (1, "")


def test_of_several_extended_files_later_ones_win_and_none_is_applied_twice(tmp_path: Path) -> None:
    write(
        tmp_path,
        base=BASE,
        one="version: 1\nextends: base.yaml\nrules: [{name: r, for: 5}]",
        two="version: 1\nextends: base.yaml\nrules: [{name: r, keep: 9}]",
        own="version: 1\nextends: [one.yaml, two.yaml]",
    )
    rule = rules_of(tmp_path / "own.yaml")["r"]
    assert (rule.hold, rule.keep) == (5, 9)


def test_extended_files_lie_beside_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", base=BASE, middle="version: 1\nextends: base.yaml")
    write(tmp_path, own="version: 1\nextends: inner/middle.yaml")
    assert list(rules_of(tmp_path / "own.yaml")) == ["r", "s"]


def test_the_texts_of_all_files_are_kept(tmp_path: Path) -> None:
    write(tmp_path, base=BASE, own="version: 1\nextends: base.yaml")
    texts = load_rules(tmp_path / "own.yaml").texts
    assert texts == {
        str(tmp_path / f"{name}.yaml"): (tmp_path / f"{name}.yaml").read_text() for name in ("own", "base")
    }


def test_two_files_of_one_label_both_keep_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, default="version: 1\nextends: default\nrules: [{name: own-rule, when: loss > 5}]")
    ruleset = load_rules("default.yaml")
    assert ruleset.rules[-1].name == "own-rule"
    assert len(ruleset.texts) == 2


def test_all_faults_of_all_files_come_at_once_in_order(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="version: 1\nrules: [{name: a, when: los > 5, for: 0}]",
        own="version: 2\nextends: [base.yaml, nothing.yaml]\n"
        "rules: [{name: b, when: lr > 1, message: '{x}'}, {name: c}]",
        other="- 1",
    )
    faults = faults_of(tmp_path / "own.yaml", tmp_path / "other.yaml")
    places = [fault.removeprefix(f"{tmp_path}/").split(": ")[0] for fault in faults]
    assert places == [
        *["own.yaml:1:10", "own.yaml:2:22", "own.yaml:3:43", "own.yaml:3:50"],
        *["base.yaml:2:25", "base.yaml:2:39", "other.yaml:1:1"],
    ]


def test_files_that_extend_each_other_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, a="version: 1\nextends: b.yaml", b="version: 1\nextends: a.yaml")
    (fault,) = faults_of(tmp_path / "a.yaml")
    assert fault == f"{tmp_path}/b.yaml:2:10: extends itself: a.yaml extends b.yaml extends a.yaml"


def test_a_disabled_rule_that_no_file_has_gives_a_near_miss(tmp_path: Path) -> None:
    write(
        tmp_path,
        base=BASE.replace("name: s", "name: loss-plateau"),
        own="version: 1\nextends: base.yaml\ndisable: [loss-plato]",
    )
    (fault,) = faults_of(tmp_path / "own.yaml")
    assert fault.endswith("got 'loss-plato'; did you mean 'loss-plateau'?)")


def test_nothing_is_said_of_disabled_rules_while_a_file_is_missing(tmp_path: Path) -> None:
    write(tmp_path, own="version: 1\nextends: nothing.yaml\ndisable: [r]")
    assert len(faults_of(tmp_path / "own.yaml")) == 1


def test_a_message_that_no_longer_fits_is_blamed_on_the_condition_that_changed(tmp_path: Path) -> None:
    base = "version: 1\nrules: [{name: r, when: 'crash(loss)', message: 'rose {rise}'}]"
    own = "version: 1\nextends: base.yaml\nrules: [{name: r, when: loss > 5}]"
    (fault,) = faults_of(write(tmp_path, base=base, own=own) / "own.yaml")
    assert fault.startswith(
        f"{tmp_path}/own.yaml:3:25: rule 'r': the message at {tmp_path}/base.yaml:2:55 does not"
    )


def test_a_new_message_that_does_not_fit_is_blamed_itself(tmp_path: Path) -> None:
    own = "version: 1\nextends: base.yaml\nrules: [{name: r, message: 'rose {rise}'}]"
    (fault,) = faults_of(write(tmp_path, base=BASE, own=own) / "own.yaml")
    assert fault.startswith(f"{tmp_path}/own.yaml:3:34: rule 'r': message: an unknown value")


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    for index in range(120):
        write(tmp_path, **{f"f{index}": f"version: 1\nextends: f{index + 1}.yaml"})
    (fault,) = faults_of(tmp_path / "f0.yaml")
    assert "too many files (expected at most 100)" in fault


@pytest.mark.parametrize("source", ["nothing.yaml", "defualt", "a\0b", "x" * 5_000])
def test_a_source_that_is_not_there(source: str) -> None:
    (fault,) = faults_of(source)
    assert ":1:1: " in fault
    assert ("did you mean 'default'" in fault) == (source == "defualt")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
def test_a_folder_is_no_rule_file(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path)
    assert "cannot be read (expected a file" in fault


def test_packs_are_found_by_name() -> None:
    assert "default" in pack_names()
    for name in pack_names():
        assert pack_path(name).is_file()
        assert load_rules(name).texts
    with pytest.raises(KeyError):
        pack_path("nothing")


def test_a_file_may_extend_a_pack(tmp_path: Path) -> None:
    write(tmp_path, own="version: 1\nextends: default\nrules: [{name: own-rule, when: loss > 5}]")
    names = list(rules_of(tmp_path / "own.yaml"))
    assert names == [*rules_of("default"), "own-rule"]


def test_packs_lie_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "stepguard"
    (package / "packs").mkdir(parents=True)
    shutil.copy(pack_path("default"), package / "packs" / "other.yaml")
    monkeypatch.setattr("stepguard.rules.packs.__file__", str(package / "rules" / "packs.py"))
    assert pack_names() == ("other",)
    assert load_rules("other").rules


PIECES = st.sampled_from(
    [
        *[
            "version: 1\n",
            "rules:\n",
            "  - name: r\n",
            "    when: loss > 5\n",
            "    when: los\n",
            "    for: 3\n",
        ],
        *[
            "extends: default\n",
            "extends: [nothing]\n",
            "disable: [r]\n",
            "    layers: {type: [A], not: B}\n",
        ],
        *[
            "    action:\n",
            "      - skip: {times: 3}\n",
            "      - restart: auto\n",
            "    action: halt\n",
            "&a ",
            "*a",
        ],
        *[
            "    message: '{value}'\n",
            "    message: >\n      x {y}\n",
            "    active: ..30%\n",
            "rules: []\n",
            "---\n",
        ],
        *[
            "{",
            "}",
            "[",
            "]",
            ":",
            "- ",
            "!!python/name:os.system ",
            "\t",
            "'",
            '"',
            "|\n",
            "? ",
            "on",
            "~",
            "\0",
            "é",
        ],
    ]
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=50))
def test_no_text_makes_the_loader_fail(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        ruleset = load_rules(path)
    except RuleFileError as error:
        assert error.problems
        assert all(problem.what and problem.place.line >= 1 for problem in error.problems)
    else:
        assert ruleset.texts


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 600), bytes_=st.binary(max_size=4), cut=st.integers(0, 4))
def test_no_damage_to_a_file_makes_the_loader_fail(
    place: int, bytes_: bytes, cut: int, tmp_path: Path
) -> None:
    whole = WHOLE.encode()
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(whole[:place] + bytes_ + whole[place + cut :])
    try:
        load_rules(path)
    except RuleFileError as error:
        assert error.problems
