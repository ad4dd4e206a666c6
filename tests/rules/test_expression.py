from __future__ import annotations

import pickle
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepguard.rules.expression import Condition, ExpressionError, compile_condition
from stepguard.rules.functions import FUNCTIONS
from stepguard.rules.setting import Setting
from stepguard.rules.tree import walk
from stepguard.signals import SIGNALS


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("loss > 5", "(loss > 5)"),
        ("loss>5.0", "(loss > 5)"),
        (" loss\n  > 5 ", "(loss > 5)"),
        ("loss > 1e-8", "(loss > 1e-08)"),
        ("loss > -inf", "(loss > -inf)"),
        ("loss > 1_000", "(loss > 1000)"),
        ("1 < loss <= 2", "((1 < loss) and (loss <= 2))"),
        ("not loss > 5 or lr < 1", "((not (loss > 5)) or (lr < 1))"),
        ("2 ** -lr * 3 > 1", "(((2 ** (- lr)) * 3) > 1)"),
        ("mean(loss, 5) > 1", "(mean(loss, n=5) > 1)"),
        ("mean(loss, n=5) > 1", "(mean(loss, n=5) > 1)"),
        ("crash(loss)", "crash(loss, rise=3, fall=3, within=60, young=9)"),
        ("crash(loss, 2, within=9)", "crash(loss, rise=2, fall=3, within=9, young=9)"),
        ("any(crash(act.std))", "any(crash(act.std, rise=3, fall=3, within=60, young=9))"),
        (
            "share(held(crash(act.std), 2, 3)) > 0.5 and crash(loss)",
            "((share(held(crash(act.std, rise=3, fall=3, within=60, young=0), n=2, of=3)) > 0.5)"
            " and crash(loss, rise=3, fall=3, within=60, young=9))",
        ),
        ("held(nonfinite(loss), 3, of=5)", "held(nonfinite(loss), n=3, of=5)"),
        ("metric.val_loss > 3", "(metric.val_loss > 3)"),
        ("step > 10 and progress > 0.5", "((step > 10) and (progress > 0.5))"),
        ("first(grad.norm) / last(grad.norm) < 1e-3", "((first(grad.norm) / last(grad.norm)) < 0.001)"),
    ],
)
def test_the_canonical_text(text: str, canonical: str) -> None:
    assert compile_condition(text).root.text == canonical


@pytest.mark.parametrize(
    ("text", "vector", "layered", "subject", "signals", "measures"),
    [
        ("loss > 5", False, False, "loss", {"loss"}, ()),
        ("act.std > loss", True, True, "act.std", {"act.std", "loss"}, ()),
        ("step > 5 and loss > act.std", True, True, "loss", {"act.std", "loss"}, ()),
        ("share(act.std > 1) > 0.5", False, True, "act.std", {"act.std"}, ()),
        ("worst(act.std) > 3 * act.std", True, True, "act.std", {"act.std"}, ()),
        ("step > 5", False, False, "step", set[str](), ()),
        ("any(crash(act.rms))", False, True, "act.rms", {"act.rms"}, ("rise", "fall", "peak")),
        (
            "crash(loss) or spike(loss, 20, 3) or spike(lr, 20, 3)",
            False,
            False,
            "loss",
            {"loss", "lr"},
            ("rise", "fall", "peak", "ratio", "baseline"),
        ),
    ],
)
def test_what_a_condition_says_of_itself(  # noqa: PLR0917 - a table
    text: str, vector: bool, layered: bool, subject: str, signals: set[str], measures: tuple[str, ...]
) -> None:
    condition = compile_condition(text)
    assert (condition.vector, condition.layered, condition.subject) == (vector, layered, subject)
    assert (condition.signals, condition.measures) == (signals, measures)


@pytest.mark.parametrize(
    ("text", "positive"),
    [
        ("act.std", True),
        ("loss", False),
        ("act.mean", False),
        ("abs(act.mean)", True),
        ("act.std + grad.norm", True),
        ("act.std - grad.norm", False),
        ("act.std * act.mean", False),
        ("act.std / 2", True),
        ("-act.std", False),
        ("act.std ** -2", True),
        ("mean(act.std, 5)", True),
        ("mean(loss, 5)", False),
        ("delta(act.std, 5)", False),
        ("std(loss, 5)", True),
        ("worst(act.std)", True),
        ("worst(act.mean)", False),
        ("share(loss > act.std)", True),
        ("step", True),
    ],
)
def test_which_numbers_are_never_below_zero(text: str, positive: bool) -> None:
    condition = compile_condition(f"{text} > step")
    assert condition.root.parts[0].positive is positive


def test_all_faults_are_reported_in_the_order_of_the_text() -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_condition("los > 1 and mean(lr, 0) > 2 and share(act.std) > 0.5 and nope(grad.nrm)")
    assert [fault.offset for fault in caught.value.faults] == [0, 21, 38, 57, 62]


def test_a_fault_points_into_the_text_as_it_was_written() -> None:
    text = "\n  loss > 5\n\tand\n   los > 3"
    with pytest.raises(ExpressionError) as caught:
        compile_condition(text)
    (fault,) = caught.value.faults
    assert text[fault.offset :].startswith("los > 3")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_the_table_compiles_and_is_documented(name: str) -> None:
    function = FUNCTIONS[name]
    given_ = {setting.name: setting.default or max(10, setting.least) for setting in function.settings}
    settings = "".join(f", {key}={value:g}" for key, value in given_.items())
    argument = "act.std > 1" if function.takes == "truth" else "act.std"
    call = f"{name}({argument}{settings})"
    condition = compile_condition(call if function.gives == "truth" else f"{call} > 1")
    assert name in condition.text
    assert function.doc
    assert function.signature.startswith(f"{name}(")


@pytest.mark.parametrize("name", [*SIGNALS, "metric.anything"])
def test_every_signal_can_be_read(name: str) -> None:
    assert compile_condition(f"{name} > 1").subject == name


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        (Setting("n", "", 1, whole=True), 1, True),
        (Setting("n", "", 1, whole=True), 0, False),
        (Setting("n", "", 1, whole=True), 1.5, False),
        (Setting("n", "", 1, whole=True), float("inf"), False),
        (Setting("n", "", 1, whole=True), float("nan"), False),
        (Setting("by", "", 1, above=True), 1, False),
        (Setting("by", "", 1, above=True), 1.01, True),
    ],
)
def test_the_range_of_a_setting(setting: Setting, value: float, allowed: bool) -> None:
    assert setting.allows(value) is allowed


def test_conditions_compare_by_their_text_and_can_be_pickled() -> None:
    one, other = compile_condition("loss > 5"), compile_condition("loss > 5")
    assert one == other
    assert one != compile_condition("loss > 6")
    assert pickle.loads(pickle.dumps(one)).root.text == one.root.text


def test_the_signals_are_those_that_the_tree_reads() -> None:
    condition = compile_condition("act.std > mean(loss, 5) and share(grad.norm > lr) > 0.5")
    assert {node.text for node in walk(condition.root) if not node.parts} - {"0.5"} == condition.signals


WORDS = [
    *["loss", "act.std", "metric.x", "step", "share", "any", "worst", "mean", "held", "crash", "spike"],
    *["nonfinite", "abs", "(", "(", ")", ")", ",", "n=", "of=", "3", "0.5", "1e-8", "inf", "nan", "9" * 400],
    *[">", "<", "==", "!=", "+", "-", "*", "/", "**", "and", "or", "not", "if", "else", "in", "lambda"],
    *[
        "await",
        "yield",
        "None",
        "True",
        "__class__",
        ".",
        "=",
        ":=",
        "[",
        "]",
        "{",
        "'",
        "#",
        "\\",
        "\0",
        "é",
    ],
]


def compiles_or_says_why(text: str) -> None:
    try:
        condition = compile_condition(text)
    except ExpressionError as error:
        assert error.faults
        assert all(0 <= fault.offset <= len(text) for fault in error.faults)
        assert all(fault.what.isprintable() for fault in error.faults)
    else:
        assert isinstance(condition, Condition)
        assert compile_condition(condition.root.text).root.text == condition.root.text


@given(st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join))
@example("- " * 1_999 + "loss")
@example("not " * 999 + "loss")
@example("loss" + "**2" * 1_300)
@example("loss" + "+1" * 1_900)
@example("loss>1" + " and loss>1" * 200)
@example("a." * 1_900 + "b > 1")
@example("1" * 3_999)
@example("abs(" * 39 + "loss" + ")" * 39 + " > 1")
def test_no_words_make_the_compiler_fail(text: str) -> None:
    compiles_or_says_why(text)


@given(st.text(max_size=80) | st.text(string.printable, max_size=80))
def test_no_text_makes_the_compiler_fail(text: str) -> None:
    compiles_or_says_why(text)
