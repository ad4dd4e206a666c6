"""`stepguard run` where rules end attempts, and where nothing does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_output_and_exit_code_pass_through_untouched(start) -> None:
    run = start(
        "steps(0, 3); link.close(); sys.stdout.buffer.write(b'a\\0b\\r\\n'); sys.stderr.write('note')"
    )
    code, out, err = run.end()
    assert (code, err) == (0, "note")
    assert out.endswith("a\0b\n"), "text mode reads the end of the line so"


def test_a_rule_has_the_next_attempt_made_with_its_remedy_and_ladders_go_on(start) -> None:
    run = start("""
steps(0, 8)
if attempt.number == 1:
    error = restart(lr=0.5, init="lsuv", seed=3)
    link.stop(error, {"r": Standing(1, 1, acted=7, restarts=(0, 1))})
    raise error
print(attempt.standings["r"] == Standing(restarts=(0, 1)))
link.close()
""")
    code, out, err = run.end()
    lines = out.splitlines()
    assert code == 0
    assert lines[:2] == ["attempt 1 False 1.0 None 0", "attempt 2 False 0.5 lsuv 3"]
    assert lines[2] == "True"
    assert "Traceback" not in err
    assert "start 1: step 7," in err
    assert "rule r asks for a restart" in err
    assert "start 2 of 4 with learning rate x0.5, LSUV initialisation, from the beginning" in err


@pytest.mark.parametrize(
    ("ending", "code"), [("raise error", 75), ("sys.exit(0)", 75), ("os.kill(os.getpid(), 9)", 75)]
)
def test_what_a_rule_asked_for_counts_however_the_script_ends(start, ending: str, code: int) -> None:
    run = start(f"steps(0, 8); error = restart(); link.stop(error, {{}}); {ending}", "--restarts", "1")
    found, out, err = run.end()
    assert found == code
    assert out.splitlines() == ["attempt 1 False 1.0 None 0", "attempt 2 True 1.0 None 0"]
    assert "no restart: a restart is asked for, but no attempts are left" in err


def test_a_script_that_goes_on_with_a_new_guard_was_not_ended_by_the_rule(start) -> None:
    run = start("steps(0, 8); link.stop(restart(), {}); link.close(); steps(0, 4); link.close()")
    assert run.end()[0] == 0


def test_a_halt_is_exit_code_70(start) -> None:
    run = start("steps(0, 8); e = TrainingHalted('x', step=7, rule='h'); link.stop(e, {}); raise e")
    code, _, err = run.end()
    assert code == 70
    assert "halted by rule h" in err


def test_the_supervisor_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from stepguard.cli import main; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", code, "run", "--", "sh", "-c", "exit 3"], check=False, capture_output=True
    )
    assert result.returncode == 3


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["--", "no-such-command"], ["--hang", "-1", "--", "true"], ["--restarts", "x"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "stepguard", "run", *arguments]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--restarts", "x", "a whole number from 0"),
        ("--restarts", "-1", "a whole number from 0"),
        ("--hang", "nope", "seconds above 0"),
        ("--hang", "nan", "seconds above 0"),
    ],
)
def test_an_option_that_cannot_be_says_what_was_expected(option: str, value: str, expected: str) -> None:
    command = [sys.executable, "-m", "stepguard", "run", f"{option}={value}", "--", "true"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"argument {option}: expected {expected}, got {value!r}" in done.stderr
