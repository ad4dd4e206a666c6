from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stepguard.cli import main
from stepguard.report.vocabulary import VOCABULARY
from stepguard.rules.actions import ACTIONS
from stepguard.rules.functions import FUNCTIONS
from stepguard.rules.packs import load_rules, pack_names, pack_path
from stepguard.signals import SIGNALS

OWN = """\
version: 1
rules:
  - name: before
    when: loss > 5
  - name: own
    # It matters
    # a great deal.
    when: act.std > 3
    layers: {type: [Conv2d, "Lin*"], name: "features.*", not: "*.head"}
    for: 3
    keep: 20
    active: 100..30%
    settle: 7
    severity: critical
    action:
      - skip: {times: 3}
      - lower_lr: {by: 0.5}
      - restart: auto
      - halt
    message: "std is {value}"
    advice: [less, more]
    source: a book
  - name: late
    when: drift(loss, 100, by=2)
    active: 50..
    # not of own
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    Path("own.yaml").write_text(OWN)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(list(arguments)) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_rule_is_explained_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "explain", "own", "--rules", "own.yaml") == [
        "own",
        "fires at each layer whose act.std (standard deviation of the output) is above 3",
        "condition act.std > 3",
        "looks at layers of type Conv2d or Lin* named features.* but not *.head",
        "for once that has held at 3 evaluated steps in a row",
        "keeps firing for 20 steps after it stopped holding",
        "awake from step 100 to 30 % of the run (asleep where total_steps is not known)",
        "severity critical",
        "then 1. leave this optimizer step out, up to 3 times",
        "2. go on, with learning rate x0.5",
        "3. end the attempt; the next begins from nothing,"
        " with a remedy chosen by what was measured and tried",
        "4. halt the training",
        "the next is tried unless the condition stays clear for 7 steps",
        "why It matters a great deal.",
        "says std is {value}",
        "cures - less",
        "- more",
        "source a book",
        "measured not measured",
        "stands own.yaml:5",
        "",
    ]


def test_the_measured_noise_of_a_detector_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "explain", "late", "--rules", "own.yaml")
    assert "awake from step 50 on" in lines
    assert any(line.startswith("noise drift: False alarms at n=200, by=1.5: none;") for line in lines)


@pytest.mark.parametrize("pack", pack_names())
def test_every_shipped_rule_is_explained_with_its_place(
    pack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pack_path(pack)
    text = path.read_text().splitlines()
    for rule in load_rules(pack):
        if rule.place.file == path.name:
            lines = told(capsys, "explain", rule.name)
            assert f"{pack}/{rule.name}" in lines
            assert f"stands {path}:{rule.place.line}" in lines
            assert text[rule.place.line - 1].strip() == f"- name: {rule.name}"


def test_a_function_is_explained_with_settings_and_definition(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "explain", "crash")
    assert lines[1] == "function crash(x, rise=3, fall=3, within=60, young=9)"
    assert "rise from trough to peak, a factor: a number above 1; 3 unless given" in lines
    assert "measures rise, fall, peak (for the message)" in lines
    assert any("False alarms at rise=3" in line for line in lines)


def test_a_fold_over_layers_is_explained_with_an_example_in_words_its_source_and_its_rules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = told(capsys, "explain", "share")
    assert lines[1:4] == [
        "function share(condition)",
        "gives a number for the run: share of the layers, 0..1",
        "takes a truth per layer",
    ]
    assert lines[4].startswith(
        "written share(act.std > 1) >= 0.5: it holds when the share of layers whose act.std"
    )
    assert any(line.startswith("Source: fast.ai") for line in lines)
    assert any(line.startswith("called by ") and "default/rising-crash" in line for line in lines)


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_is_explained_in_full(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "explain", name)
    labels = {line.split(" ")[0] for line in lines}
    assert {"action", "changes", "fits", "written", *ACTIONS[name].kinds} <= labels
    (written,) = (line.removeprefix("written ") for line in lines if line.startswith("written "))
    action = written.partition(";")[0]
    Path("own.yaml").write_text(f"version: 1\nrules:\n- name: r\n  when: loss > 5\n  action:\n  - {action}\n")
    assert load_rules(Path("own.yaml")).rules[0].ladder[0].kind == name


def test_a_restart_is_explained_with_its_settings_source_and_rules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = told(capsys, "explain", "restart")
    assert "lr factor of the learning rate: a number above 0 and at most 10; may be left out" in lines
    how = "init how the model is initialised; standardise: lsuv, and steps as on standardised inputs"
    assert f"{how}: kaiming, lsuv or standardise; may be left out" in lines
    assert any(line.startswith("source fast.ai") for line in lines)
    assert any(line.startswith("taken by ") for line in lines)
    assert "by factor of the learning rate: a number above 0 and below 1" in told(
        capsys, "explain", "lower_lr"
    )


def test_a_signal_is_explained_with_the_rules_that_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "explain", "act.dead")
    assert lines[1] == "signal act.dead: units whose output is zero for the whole batch"
    assert any(line.startswith("read by ") and "default/dead-layer" in line for line in lines)
    assert told(capsys, "explain", "metric.f1")[1] == "signal metric.f1: logged by the user"


@pytest.mark.parametrize("name", [*FUNCTIONS, *SIGNALS])
def test_every_function_and_signal_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name in told(capsys, "explain", name)


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["rising-crsh"], "rising-crash"),
        (["act.sdt"], "act.std"),
        (["zscor"], "zscore"),
        (["onw", "--rules", "own.yaml"], "own"),
    ],
)
def test_an_unknown_name_gives_a_near_miss(
    arguments: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "stepguard explain: nothing of that name (expected a rule, a function, a signal, an action or a word"
    )
    assert f"did you mean '{near}'?" in error


def test_faults_of_own_files_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text("version: 1\nrules: [{name: r, when: los > 5}]\n")
    for arguments in (["explain", "r", "--rules", "own.yaml"], ["rules", "own.yaml"]):
        assert main(arguments) == 2
        assert "own.yaml:2:25: rule 'r': an unknown signal" in capsys.readouterr().err


def test_all_packs_and_rules_stand_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "rules")
    for pack in pack_names():
        assert pack in lines
        assert {rule.name for rule in load_rules(pack)} <= {line.split(" ")[0] for line in lines}


def test_names_and_actions_are_whole_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = told(capsys, "rules", "default")
    assert "non-finite-weight critical rollback x2, restart x3, halt" in lines
    at = lines.index("non-finite-gradient critical skip x3, rollback x2, restart, skip")
    assert lines[at + 1] == "x100, restart x2, halt"


def test_the_table_of_own_files_shortens_what_is_long(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text(OWN.replace("loss > 5", "loss > 5" + " or loss > 6" * 20))
    lines = told(capsys, "rules", "own.yaml")
    assert f"before warning warn not measured {'loss > 5' + ' or loss > 6' * 4} or…" in lines
    assert "own critical skip x3, lower_lr, restart, halt not measured act.std > 3" in lines


def test_neither_command_imports_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from stepguard.cli import main;"
        "sys.exit(main(['rules']) or main(['explain', 'crash']) or main(['explain', 'dead-layer']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("word", VOCABULARY)
def test_every_word_of_rule_files_is_explained(word: str, capsys: pytest.CaptureFixture[str]):
    assert main(["explain", word]) == 0
    assert word in capsys.readouterr().out


def test_a_near_miss_of_an_action(capsys: pytest.CaptureFixture[str]):
    assert main(["explain", "rolback"]) == 2
    assert "did you mean 'rollback'?" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_fault():
    command = f"{sys.executable} -m stepguard rules | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert not done.stderr
