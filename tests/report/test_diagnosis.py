from __future__ import annotations

from dataclasses import replace

from stepguard.errors import Place
from stepguard.recover.decision import Decision
from stepguard.report.diagnosis import diagnose
from stepguard.rules.alert import Change, Evidence
from stepguard.rules.rule import Rule
from stepguard.signals import Layer

FULL = """\
critical[rising-crash]: std rose 12.3x and fell to 0.0031
  --> step 41, conv3 (Conv2d) and 3 more of 7 layers
   |
   | act.std  1.02 ▆▆▆▆▇▇▇███▇▅▃▁ 0.0031
   |          steps 28..41, 0.0031 to 12.5, log scale
   |          rise 12.3, fall 4,032, peak 12.5
   |
   = also at: conv4, conv5 and head
   = cures:   1. halve the learning rate
              2. normalise the input
              3. Kaiming or LSUV initialisation
   = now:     stepguard ends this attempt; the next begins from nothing, with learning
              rate x0.5, LSUV initialisation (rung 1 of 2)
   = rule:    default.yaml:12"""

LINE = (
    "stepguard: step 41: critical: rising-crash: conv3 (Conv2d) and 3 more of 7 layers:"
    " std rose 12.3x and fell to 0.0031 (try: halve the learning rate)"
    " -> restart (learning rate x0.5, LSUV initialisation)"
)


def at(layer: str | None, value: float, *values: float, signal: str = "act.dead") -> Change:
    evidence = Evidence(signal, value, tuple(range(len(values))), values, total=7)
    return Change(9, "rule", layer, "firing", "warning", f"{value:.0%} of the units are dead", evidence)


def test_in_full(render, crash_rule: Rule, crash: Change, layers: list[Layer], restart: Decision) -> None:
    assert render(diagnose(crash_rule, [crash], layers, restart)) == FULL


def test_as_one_line(crash_rule: Rule, crash: Change, layers: list[Layer], restart: Decision) -> None:
    assert str(diagnose(crash_rule, [crash], layers, restart)) == LINE


def test_the_line_has_the_likeliest_cause_before_the_first_cure(
    crash_rule: Rule, crash: Change, layers: list[Layer], restart: Decision
) -> None:
    found = replace(diagnose(crash_rule, [crash], layers, restart), causes=("raw inputs", "a high rate"))
    assert "fell to 0.0031 (likely: raw inputs; try: halve the learning rate) -> restart" in str(found)
    assert "fell to 0.0031 (likely: raw inputs) -> restart" in str(replace(found, advice=()))
    assert "fell to 0.0031 -> restart" in str(replace(found, advice=(), causes=()))


def test_nothing_is_lost_in_a_narrow_terminal(
    render, crash_rule: Rule, crash: Change, layers: list[Layer], restart: Decision
) -> None:
    narrow = render(diagnose(crash_rule, [crash], layers, restart), width=40)
    assert max(map(len, narrow.splitlines())) <= 40
    words = {word for word in FULL.split() if word.isalpha()}
    assert words <= set(narrow.split())


def test_many_layers_are_one_diagnosis_that_names_the_first(crash_rule: Rule, layers: list[Layer]) -> None:
    changes = [at("conv4", 0.8), at("conv2", 0.3), at("head", 0.9)]
    found = diagnose(crash_rule, changes, layers, None)
    assert [layer.name for layer in found.layers] == ["conv2", "conv4", "head"]
    assert found.message == "30% of the units are dead"
    assert found.evidence is changes[1].evidence
    assert "conv2 (Conv2d) and 2 more of 7 layers" in str(found)


def test_a_rule_on_the_run_has_no_layer(render, crash_rule: Rule, layers: list[Layer]) -> None:
    found = diagnose(crash_rule, [at(None, 2.0, 1.0, 2.0, signal="loss")], layers, None)
    assert render(found).splitlines()[1] == "  --> step 9"
    assert str(found) == (
        "stepguard: step 9: warning: rising-crash: 200% of the units are dead (try: halve the learning rate)"
    )


def test_without_decision_the_training_goes_on(
    render, crash_rule: Rule, crash: Change, layers: list[Layer]
) -> None:
    assert "= now:     the training goes on\n" in render(diagnose(crash_rule, [crash], layers, None))


def test_a_dry_run_says_what_would_happen(
    render, crash_rule: Rule, crash: Change, layers: list[Layer], restart: Decision
) -> None:
    decision = replace(restart, kind="skip", settings={}, rungs=1, use=3, dry_run=True)
    found = diagnose(crash_rule, [crash], layers, decision)
    text = " ".join(render(found).split())
    assert "stepguard would skip this optimizer step" in text
    assert "(use 3, dry run: nothing is done)" in text
    assert str(found).endswith("-> would skip")


def test_another_rules_decision_is_named(
    render, crash_rule: Rule, crash: Change, layers: list[Layer], restart: Decision
) -> None:
    decision = replace(restart, rule="nonfinite-loss", also=("rising-crash",))
    assert "as nonfinite-loss asks" in " ".join(
        render(diagnose(crash_rule, [crash], layers, decision)).split()
    )


def test_a_rule_without_message_shows_its_condition(
    crash_rule: Rule, crash: Change, layers: list[Layer]
) -> None:
    found = diagnose(crash_rule, [replace(crash, message="")], layers, None)
    assert found.message == crash_rule.condition.text


def test_markup_in_texts_is_shown_as_it_is(render, crash_rule: Rule, crash: Change) -> None:
    layers = [Layer("[bold]a[/bold]", "My[Conv]")]
    rule = replace(crash_rule, advice=("try [red]this[/red]",), place=Place("[x].yaml", 1, 1))
    evidence = Evidence("act.std", 1.0, (1, 2), (1.0, 2.0), total=1)
    change = replace(crash, layer="[bold]a[/bold]", message="[i]m[/i]", evidence=evidence)
    text = render(diagnose(rule, [change], layers, None))
    for told in ("[bold]a[/bold] (My[Conv])", "[i]m[/i]", "try [red]this[/red]", "[x].yaml:1"):
        assert told in text


def test_a_layer_with_one_reading_and_no_evidence(render, crash_rule: Rule, layers: list[Layer]) -> None:
    change = Change(3, "rising-crash", "conv1", "firing", "info", "odd")
    assert render(diagnose(crash_rule, [change], layers, None)).startswith(
        "info[rising-crash]: odd\n  --> step 3, conv1 (Conv2d)\n   = cures:"
    )
