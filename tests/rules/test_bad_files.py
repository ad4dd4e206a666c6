from __future__ import annotations

from pathlib import Path

import pytest

from stepguard.errors import RuleFileError
from stepguard.rules.packs import load_rules

BAD = Path(__file__).parent / "bad"
EXPECT = "# expect: "


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bad_file_gives_exactly_its_problems(path: Path) -> None:
    expected = [
        line.removeprefix(EXPECT)
        for line in path.read_text(encoding="utf-8").split("\n")
        if line.startswith(EXPECT)
    ]
    with pytest.raises(RuleFileError) as caught:
        load_rules(path)
    problems = [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]
    assert expected
    for problem, start in zip(problems, sorted(expected, key=_place), strict=True):
        assert start in problem


def _place(expected: str) -> tuple[int, int]:
    line, column, _ = expected.split(":", 2) if expected[:1].isdigit() else ("0", "0", "")
    return int(line), int(column)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "1:1: an empty file"),
        (b"\x00", "1:1: not a text file (expected printable characters, got '\\x00')"),
        (b"version: 1\nrules: \xff\n", "2:8: not a text file (expected UTF-8, got the byte 0xff)"),
        (b"\x89PNG\r\n\x1a\n", "1:1: not a text file (expected UTF-8, got the byte 0x89)"),
        (b"a: b\r\n\x00", "2:1: not a text file"),
        (b"x" * (1 << 20) + b"x", "1:1: too large a file (expected at most 1 MiB, got more)"),
        (b"a: [" + b"a," * 60_000 + b"]", "nested too deeply or too long"),
        (b"%YAML 9.9\n---\nversion: 1", "not YAML: found incompatible YAML document"),
        (b"version: 1\nrules:\n" + b"- {name: r}\n" * 1_001, "rules (expected at most 1,000, got 1,001)"),
    ],
)
def test_bytes_that_are_no_rule_file(data: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_bytes(data)
    with pytest.raises(RuleFileError) as caught:
        load_rules(path)
    assert len(caught.value.problems) == 1
    assert expected in str(caught.value)


def test_a_file_of_exactly_1_mib_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    head = "version: 1\nrules: []\n#"
    path.write_text(head + " " * ((1 << 20) - len(head)))
    assert load_rules(path).rules == ()


def test_a_pipe_is_not_waited_for() -> None:
    with pytest.raises(RuleFileError, match="it is no file"):
        load_rules("/dev/zero")


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\nrules:\n" + "".join(f"- {{name: r{i}, when: {'los or ' * 180}1}}\n" for i in range(700)),
        "version: 1\n" + "".join(f"rulez{i}: 1\n" for i in range(20_000)),
        "version: 1\n" + "a: 1\n" * 20_000,
        'version: 1\nrules:\n- name: r\n  when: "' + ("los or \\\n" + " " * 1_800) * 500 + '1"',
        "version: 1\nrules:\n- name: r\n  when: '" + "$" * 3_900 + "'",
        "version: 1\nrules:\n" + "".join(f"- {{name: r{i}, when: loss > 5, for: 0}}\n" for i in range(1_000)),
        "version: 1\nrules:\n- name: r\n  when: loss > 5\n  message: '" + "{x}" * 300 + "'",
    ],
    ids=["signals", "keys", "twice", "folded", "characters", "rules", "messages"],
)
def test_a_file_of_nothing_but_faults_is_given_up_soon(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(RuleFileError) as caught:
        load_rules(path)
    assert 100 <= len(caught.value.problems) <= 1_000
