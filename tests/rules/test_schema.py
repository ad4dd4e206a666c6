from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from stepguard.rules.expression import compile_condition
from stepguard.rules.functions import FUNCTIONS
from stepguard.rules.packs import load_rules, pack_names, pack_path
from stepguard.rules.rule import Rule
from stepguard.rules.schema import rule_file_schema
from stepguard.rules.spec import FILE, RULE
from stepguard.signals import SIGNALS

SCHEMA = rule_file_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
BAD = Path(__file__).parent / "bad"

UNSEEN = {
    "names that do not exist, or are given twice": """
        disable-own-rule disable-unknown extends-a-folder extends-itself extends-unknown-pack
        same-name-twice""",
    "what only another file could tell": "when-missing",
    "grammar, types, arity and settings inside a condition": """
        assignment bracket-closes-nothing bracket-never-closed compares-two-numbers ends-too-early
        floor-division function-without-brackets
        held-longer-than-its-window many-nots missing-setting nested-brackets no-argument number-as-condition
        number-out-of-range number-too-large number-under-not reads-no-signal rise-too-small
        setting-given-twice setting-not-a-literal share-of-a-number share-of-a-scalar signal-with-brackets
        too-many-settings truth-plus-number vector-as-condition window-endless window-of-a-fraction
        window-of-zero window-too-long worst-of-a-scalar""",
    "placeholders of a message": """
        message-attribute message-conversion message-empty-brace message-format message-huge-width
        message-index message-layer-of-the-run message-measure-of-no-detector message-nested-format
        message-open-brace message-unknown-value""",
    "the ends of a range against each other and against 100 %": """
        active-above-100 active-backwards active-half-a-step""",
    "how YAML is written: words that other readers take for true, octal numbers, anchors, tags, keys": """
        advice-on alias anchor
        duplicate-key duplicate-top-key for-octal name-is-yes str-tag version-of-floats""",
}
"""Faults that a schema cannot see, and the bad files that have one."""


class Core(yaml.SafeLoader):
    """YAML 1.2, as editors read it: `1e-8` is a number, `on` is none of true and false."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        key: [(tag, pattern) for tag, pattern in found if tag.rsplit(":", 1)[1] == "null"]
        for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


FLOAT = r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
Core.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), None)
Core.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), None)
Core.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"({FLOAT})$"), None)


def accepted(text: str) -> bool:
    """Whether an editor shows nothing; what is no YAML is refused."""
    try:
        return VALIDATOR.is_valid(yaml.load(text, Core))
    except (yaml.YAMLError, ValueError, RecursionError):
        return False


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("pack", pack_names())
def test_every_shipped_pack_is_accepted(pack: str) -> None:
    errors = VALIDATOR.iter_errors(yaml.load(pack_path(pack).read_text(), Core))
    assert [error.json_path + error.message[:200] for error in errors] == []


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bad_file_is_refused_unless_no_schema_could_see_its_fault(path: Path) -> None:
    unseen = {name for names in UNSEEN.values() for name in names.split()}
    assert accepted(path.read_text(encoding="utf-8")) == (path.stem in unseen)


def test_every_bad_file_that_is_said_to_be_unseen_exists() -> None:
    assert {name for names in UNSEEN.values() for name in names.split()} <= {p.stem for p in BAD.iterdir()}


@pytest.mark.parametrize(
    "rule",
    [
        "when: loss > 5, layers: {name: 0}, action: warn, advice: one",
        "for: 3",
        "when: '.5 < loss < 1_0.e5 and not act.std == inf', active: ' ..30 %', keep: 0",
        "when: metric.val_loss / loss > 1e-3, action: [{restart: auto}, restart, {skip: {times: 3}}, halt]",
        "when: loss > 5, action: {restart: {lr: 2, init: lsuv, clip: 1e-8, seed: 3}}",
        "when: loss > 5, action: {lower_lr: {by: 0.5}}",
    ],
)
def test_what_the_loader_takes_is_accepted(rule: str, tmp_path: Path) -> None:
    text = f"version: 1\nextends: default\nrules: [{{name: weights-unchanged, {rule}}}]\n"
    (tmp_path / "a.yaml").write_text(text)
    assert load_rules(tmp_path / "a.yaml").rules
    assert accepted(text)


@pytest.mark.parametrize(
    "when", ["los > 5", "act.stdd > 1", "metric. > 1", "5x > loss", "loss > 5; lr", "shar(act.std > 1) > 0.5"]
)
def test_a_condition_of_unknown_words_is_refused(when: str) -> None:
    assert not accepted(f"version: 1\nrules: [{{name: r, when: '{when}'}}]")


def test_a_long_condition_is_refused_soon() -> None:
    assert not accepted(f"version: 1\nrules: [{{name: r, when: '{'111_1.1 ' * 480}$'}}]")


def test_every_example_of_a_condition_is_one() -> None:
    when = SCHEMA["properties"]["rules"]["items"]["properties"]["when"]
    for example in when["examples"]:
        compile_condition(example)
        assert re.search(when["pattern"], example)
    assert len(when["examples"]) == len(SIGNALS) + len(FUNCTIONS)


def walk(schema: Any) -> list[dict[str, Any]]:
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return ([schema] if isinstance(schema, dict) else []) + [each for part in inner for each in walk(part)]


def test_every_field_is_described_and_completed() -> None:
    properties = SCHEMA["properties"]["rules"]["items"]["properties"]
    assert (set(SCHEMA["properties"]), set(properties)) == (set(FILE.kinds), set(RULE.kinds))
    for schema in walk(SCHEMA):
        if schema.get("type") == "object" and "name" in schema["properties"]:
            assert all(each["description"] for each in schema["properties"].values())
    assert set(SCHEMA["properties"]["extends"]["examples"]) == set(pack_names())
    assert properties["severity"]["default"] == Rule.severity


def test_the_command_prints_it_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from stepguard.cli import main; sys.exit(main(['schema']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == SCHEMA
