"""The evaluator against a plain one, which goes layer by layer and step by step through the same tree."""

from __future__ import annotations

import math
import operator
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stepguard.rules.evaluate import Evaluator, Truth, Watch
from stepguard.rules.expression import ExpressionError, compile_condition
from stepguard.rules.functions import FUNCTIONS, Detector, OverLayers, OverSteps, Pick
from stepguard.rules.tree import Call, Constant, Node, Operation, Read, walk
from stepguard.series.history import Window
from stepguard.signals import Frame, Vector

LAYERS = 3
VECTORS = ("act.std", "act.mean", "grad.norm")
SCALARS = ("loss", "lr")
ALL = np.ones(LAYERS, np.bool_)


def conditions() -> st.SearchStrategy[str]:
    """Conditions of the language, most of them right."""
    names = st.sampled_from([*VECTORS, *SCALARS, "step", "progress", "0.5", "2", "inf"])
    binary, logic = st.sampled_from(["+", "-", "*", "/", "**"]), st.sampled_from(["and", "or"])
    steps = ["mean", "median", "max", "ewma", "prev", "delta", "growth", "slope"]
    number = st.recursive(
        names,
        lambda inner: st.one_of(
            st.builds("({} {} {})".format, inner, binary, inner),
            st.builds("{}({}, 3)".format, st.sampled_from(steps), inner),
            st.builds("zscore({}, 8)".format, inner),
            st.builds("-{}".format, inner),
            st.builds("abs({})".format, inner),
            st.builds("{}({})".format, st.sampled_from(["worst", "first", "last"]), inner),
        ),
        max_leaves=4,
    )
    truth = st.one_of(
        st.builds("{} {} {}".format, number, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), number),
        st.builds("nonfinite({})".format, number),
        st.builds("crash({}, 1.5, 1.5, 4)".format, number),
        st.builds("spike({}, 8, 2)".format, number),
    )
    return st.recursive(
        truth,
        lambda inner: st.one_of(
            st.builds("({} {} {})".format, inner, logic, inner),
            st.builds("not ({})".format, inner),
            st.builds("sure({})".format, inner),
            st.builds("{}({})".format, st.sampled_from(["any", "all"]), inner),
            st.builds(
                "{}({}) {} 1".format, st.sampled_from(["share", "count"]), inner, st.sampled_from("<>")
            ),
            st.builds("held({}, 2, of=3)".format, inner),
        ),
        max_leaves=4,
    )


def frames(seed: int, count: int) -> list[Frame]:
    """Steps with gaps, at which a part of everything is missing or not finite."""
    random = np.random.default_rng(seed)
    made: list[Frame] = []
    step = 0
    for _ in range(count):
        step += int(random.integers(1, 3))
        frame = Frame(step)
        for name in SCALARS:
            if random.random() < 0.8:
                frame.scalars[name] = float(random.choice([0.5, 1, 2, 4, 8, -1, 0, np.nan, np.inf]))
        for name in VECTORS:
            known = random.random(LAYERS) < 0.8
            values = random.choice([0.5, 1, 2, 4, 8, 0, np.nan, np.inf], LAYERS)
            if known.any():
                frame.vectors[name] = Vector(values.astype(np.float32), known)
        made.append(frame)
    return made


ARITHMETIC = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}
COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


class Plain:
    """One condition, one layer at a time. None is unknown."""

    def __init__(self, root: Node, mask: NDArray[np.bool_]) -> None:
        self.root, self.mask = root, mask
        self.pushed: dict[tuple[str, int | None], list[tuple[int, float]]] = {}

    def step(self, frame: Frame) -> list[bool | None]:
        self.frame = frame
        for text, (node, layers) in self.windows(self.root).items():
            for layer in layers:
                value = self.at(node, layer)
                readings = self.pushed.setdefault((text, layer), [])
                if value is not None and math.isfinite(value):
                    readings.append((frame.step, float(value)))
        if not self.root.kind.vector:
            seen = [layer for layer in range(LAYERS) if self.mask[layer]]
            return [self.at(self.root, None) if any(map(self.fresh, [*seen, None])) else None]
        return [
            self.at(self.root, layer)
            if self.mask[layer] and (self.fresh(layer) or self.fresh(None))
            else None
            for layer in range(LAYERS)
        ]

    def windows(self, node: Node) -> dict[str, tuple[Node, list[Any]]]:
        found: dict[str, tuple[Node, list[Any]]] = {}
        for part in node.parts:
            found |= self.windows(part)
        if isinstance(node, Call) and isinstance(FUNCTIONS[node.function], OverSteps | Detector):
            found[node.argument.text] = (
                node.argument,
                list(range(LAYERS)) if node.argument.kind.vector else [None],
            )
        return found

    def fresh(self, layer: int | None) -> bool:
        reads = [
            node
            for node in walk(self.root)
            if isinstance(node, Read) and node.text not in {"step", "progress"}
        ]
        if not reads:
            return True
        return any(
            self.at(node, layer) is not None for node in reads if node.kind.vector == (layer is not None)
        )

    def at(self, node: Node, layer: int | None) -> Any:
        layer = layer if node.kind.vector else None
        match node:
            case Constant():
                return np.float64(node.value)
            case Read():
                return self.read(node.text, layer)
            case Operation():
                return self.operation(node.operator, [self.at(part, layer) for part in node.parts])
            case _:
                assert isinstance(node, Call)
                return self.call(node, layer)

    def read(self, name: str, layer: int | None) -> Any:
        if name == "step":
            return np.float64(self.frame.step)
        if name in VECTORS:
            vector = self.frame.vectors.get(name)
            return np.float64(vector.values[layer]) if vector and vector.known[layer] else None
        value = self.frame.scalars.get(name)
        return None if value is None else np.float64(value)

    def operation(self, name: str, parts: list[Any]) -> Any:
        if name == "and":
            return False if False in parts else None if None in parts else True
        if name == "or":
            return True if True in parts else None if None in parts else False
        if None in parts:
            return None
        if name == "not":
            return not parts[0]
        if name in COMPARE:
            return None if any(map(np.isnan, parts)) else bool(COMPARE[name](*parts))
        return -parts[0] if len(parts) == 1 else ARITHMETIC[name](*parts)

    def call(self, node: Call, layer: int | None) -> Any:
        function = FUNCTIONS[node.function]
        if isinstance(function, OverSteps | Detector):
            return self.over_steps(node, function, layer)
        if isinstance(function, OverLayers | Pick):
            return self.over_layers(node)
        value = self.at(node.argument, layer)
        if node.function == "sure":
            return value is True
        if value is None:
            return None
        return abs(value) if node.function == "abs" else not math.isfinite(value)

    def over_steps(self, node: Call, function: OverSteps | Detector, layer: int | None) -> Any:
        last = self.frame.step - function.reach(node.settings)
        readings = self.pushed[node.argument.text, layer]
        inside = [reading for reading in readings if reading[0] > last]
        window = Window(
            np.array([step for step, _ in inside], np.int64),
            np.array([value for _, value in inside]),
            np.asarray(float(readings[0][0]) if readings else np.inf),
        )
        if isinstance(function, Detector):
            detection = function.run(window, self.frame.step, node.settings)
            return bool(detection.holds) if detection.known else None
        value = float(function.run(window, self.frame.step, node.settings, node.argument.positive))
        if math.isnan(value):
            return None
        return value == 1 if node.kind.truth else np.float64(value)

    def over_layers(self, node: Call) -> Any:
        values = [self.at(node.argument, layer) for layer in range(LAYERS) if self.mask[layer]]
        values = [value for value in values if value is not None]
        if node.function == "worst":
            values = [value for value in values if not math.isnan(value)]
        if not values:
            return None
        return {
            "any": lambda: any(values),
            "all": lambda: all(values),
            "share": lambda: np.float64(sum(values) / len(values)),
            "count": lambda: np.float64(sum(values)),
            "worst": lambda: max(values),
            "first": lambda: values[0],
            "last": lambda: values[-1],
        }[node.function]()


def told(truth: Truth) -> list[bool | None]:
    """Write a truth as the plain evaluator does."""
    pairs = zip(truth.holds.reshape(-1).tolist(), truth.known.reshape(-1).tolist(), strict=True)
    return [holds if known else None for holds, known in pairs]


masks = st.lists(st.booleans(), min_size=LAYERS, max_size=LAYERS).map(lambda mask: np.array(mask, np.bool_))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(conditions(), masks), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_it_says_what_a_plain_evaluator_says(written: list[tuple[str, NDArray[np.bool_]]], seed: int) -> None:
    watches: list[Watch] = []
    for text, mask in written:
        try:
            watches.append(Watch(compile_condition(text), mask))
        except ExpressionError:
            continue
    evaluator = Evaluator(watches, LAYERS)
    plain = [Plain(watch.condition.root, watch.mask) for watch in watches]
    for frame in frames(seed, 14):
        evaluator.feed(frame, None)
        with np.errstate(all="ignore"):
            expected = [each.step(frame) for each in plain]
        for index in range(len(watches)):
            assert told(evaluator.truth(index)) == expected[index], (watches[index].condition.text, frame)


@settings(max_examples=50, deadline=None)
@given(conditions(), masks, st.integers(0, 2**32 - 1), st.integers(0, 11))
def test_after_a_restart_it_goes_on_as_before(
    text: str, mask: NDArray[np.bool_], seed: int, begin: int
) -> None:
    evaluator, steps = begun(text, mask), frames(seed, 12)
    for frame in steps[:begin]:
        evaluator.feed(frame, 0.5)
    state = pickle.dumps(evaluator.state_dict())
    before = answers(evaluator, steps[begin:])
    evaluator = begun(text, mask)
    evaluator.load_state_dict(pickle.loads(state))
    assert answers(evaluator, steps[begin:]) == before


@settings(max_examples=50, deadline=None)
@given(conditions(), masks, st.integers(0, 2**32 - 1), st.integers(1, 11))
def test_after_a_rewind_it_says_what_it_would_have_said(
    text: str, mask: NDArray[np.bool_], seed: int, begin: int
) -> None:
    steps, other = frames(seed, 12), frames(seed + 1, 1)[0]
    evaluator, straight = begun(text, mask), begun(text, mask)
    for frame in steps[:begin]:
        evaluator.feed(frame, 0.5)
        straight.feed(frame, 0.5)
    other.step = steps[begin - 1].step + 1
    evaluator.feed(other, 0.5)
    evaluator.rewind(steps[begin - 1].step)
    assert answers(evaluator, steps[begin:]) == answers(straight, steps[begin:])


def begun(text: str, mask: NDArray[np.bool_]) -> Evaluator:
    try:
        return Evaluator([Watch(compile_condition(text), mask)], LAYERS)
    except ExpressionError:
        reject()


def answers(evaluator: Evaluator, steps: list[Frame]) -> list[Any]:
    found: list[Any] = []
    for frame in steps:
        evaluator.feed(frame, 0.5)
        found.append(told(evaluator.truth(0)))
    subject = next(iter(evaluator.state_dict()["readings"]))
    return [*found, repr(evaluator.readings(subject, 0))]


def evaluate(text: str, mask: NDArray[np.bool_] = ALL, **signals: Any) -> Truth:
    """The truth of a condition at one step."""
    evaluator = Evaluator([Watch(compile_condition(text), mask)], LAYERS)
    evaluator.feed(frame_of(0, **signals), None)
    return evaluator.truth(0)


def frame_of(step: int, loss: float | None = None, **vectors: list[float | None]) -> Frame:
    frame = Frame(step, {} if loss is None else {"loss": loss})
    for name, values in vectors.items():
        known = np.array([value is not None for value in values])
        numbers = np.array([np.nan if value is None else value for value in values], np.float32)
        frame.vectors[name.replace("_", ".")] = Vector(numbers, known)
    return frame


NAN = math.nan


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("any(act.std > 2)", [1, 3, 5], [False, True, True]),
        ("all(act.std > 0)", [1, 3, 5], [True, True, True]),
        ("share(act.std > 2) > 0.5", [1, 3, 5], [False, True, True]),
        ("share(act.std > 2) < 0.9", [1, 3, 5], [True, False, False]),
        ("0.9 > share(act.std > 2)", [1, 3, 5], [True, False, False]),
        ("not all(act.std > 2)", [1, 3, 5], [True, False, False]),
        ("not any(act.std > 9)", [1, 3, 5], [True, True, True]),
        ("count(act.std > 2) >= 2", [1, 3, None], [False, False, False]),
        ("count(act.std > 2) >= 1", [1, 3, None], [False, True, False]),
        ("worst(act.std) > 2", [1, 3, 5], [False, False, True]),
        ("first(act.std) < 2", [1, 3, 5], [True, False, False]),
        ("first(act.std) / last(act.std) < 0.5", [1, 3, 5], [True, False, True]),
        ("any(act.std > 4) or any(act.std < 2)", [3, 3, 5], [False, False, True]),
        ("any(act.std > 4) and any(act.std < 4)", [3, 3, 5], [True, True, True]),
        ("any(act.std > 4) or step == 0", [3, 3, 3], [False, False, False]),
        ("act.std > 2", [1, 3, NAN], [False, True, False]),
        ("any(nonfinite(act.std))", [1, NAN, None], [False, True, False]),
        ("not sure(act.std > 2)", [1, 3, None], [True, False, False]),
        ("act.std > 2 and not sure(loss > 1)", [1, 3, None], [False, True, False]),
    ],
)
def test_the_layers_that_make_it_true(text: str, values: list[float], expected: list[bool]) -> None:
    truth = evaluate(text, act_std=values)
    assert truth.witnesses is not None
    assert truth.witnesses.tolist() == expected


def test_the_layers_it_could_see_are_known_and_inside_the_filter() -> None:
    truth = evaluate("share(act.std > 2) > 0.4", np.array([True, True, False]), act_std=[None, 3, 5])
    assert truth.seen is not None
    assert (bool(truth.holds), truth.seen.tolist()) == (True, [False, True, False])


def test_a_condition_of_the_run_has_no_witnesses() -> None:
    truth = evaluate("loss > 2", loss=3.0)
    assert bool(truth.holds)
    assert truth.witnesses is None
    assert truth.seen is None


def test_a_share_of_no_layers_is_unknown() -> None:
    truth = evaluate("share(act.std > 2) < 2 and loss > 0", loss=1.0, act_std=[NAN, NAN, NAN])
    assert not truth.known


def test_division_by_zero_is_infinite_and_silent() -> None:
    assert evaluate("1 / loss == inf", loss=0.0).holds
    assert not evaluate("loss / loss == loss", loss=0.0).known


def test_windows_over_a_fold_are_fed_with_the_filter_of_their_rule() -> None:
    condition = compile_condition("max(worst(act.std), 3) > 4")
    watches = [Watch(condition, np.array(mask)) for mask in ([True, True, True], [True, True, False])]
    evaluator = Evaluator(watches, LAYERS)
    for step in range(4):
        evaluator.feed(frame_of(step, act_std=[1, 3, 5]), None)
    assert [bool(evaluator.truth(index).holds) for index in range(2)] == [True, False]


def test_windows_are_fed_while_nobody_asks() -> None:
    evaluator = Evaluator([Watch(compile_condition("step > 9 and mean(loss, 10) < 2"), ALL)], LAYERS)
    for step in range(11):
        evaluator.feed(frame_of(step, loss=1.0), None)
    assert evaluator.truth(0).holds


def test_it_is_unknown_where_nothing_new_was_measured() -> None:
    evaluator = Evaluator([Watch(compile_condition("mean(act.std, 2) < 2"), ALL)], LAYERS)
    for step, values in enumerate([[1, 1, 1], [1, 1, 1], [1, None, 1]]):
        evaluator.feed(frame_of(step, act_std=values), None)
    assert told(evaluator.truth(0)) == [True, None, True]
    evaluator.feed(frame_of(3, loss=1.0), None)
    assert told(evaluator.truth(0)) == [None, None, None]


def test_progress_is_unknown_without_a_total() -> None:
    evaluator = Evaluator([Watch(compile_condition("progress >= 0.5"), ALL)], LAYERS)
    evaluator.feed(Frame(5), None)
    assert not evaluator.truth(0).known
    evaluator.feed(Frame(6), 0.5)
    assert evaluator.truth(0).holds


def test_a_vector_of_another_length_fails_the_conditions_that_read_it_and_no_other() -> None:
    texts = ["act.std > 2", "mean(act.std, 3) > 2", "loss > 2"]
    evaluator = Evaluator([Watch(compile_condition(text), ALL) for text in texts], LAYERS)
    evaluator.feed(frame_of(0, loss=3.0, act_std=[1, 3]), None)
    for index in range(2):
        with pytest.raises(ValueError, match=r"act.std has the shape \(2,\), expected \(3,\)"):
            evaluator.truth(index)
    assert evaluator.truth(2).holds


def test_the_measures_of_the_detectors() -> None:
    evaluator = Evaluator([Watch(compile_condition("any(crash(act.std, 3, 3, 9))"), ALL)], LAYERS)
    for step, value in enumerate([1.0, 2.0, 4.0, 8.0, 1.0]):
        evaluator.feed(frame_of(step, act_std=[1, value, None]), None)
    assert evaluator.truth(0).holds
    assert evaluator.measures(0, 1) == {"rise": 4.0, "fall": 4.0, "peak": 4.0}
    assert evaluator.measures(0, None) == {}


def test_the_measures_of_a_detector_of_the_run() -> None:
    evaluator = Evaluator([Watch(compile_condition("crash(worst(act.std), 3, 3, 9)"), ALL)], LAYERS)
    for step, value in enumerate([1.0, 2.0, 4.0, 8.0, 1.0]):
        evaluator.feed(frame_of(step, act_std=[1, value, None]), None)
    assert evaluator.truth(0).holds
    assert evaluator.measures(0, 1)["peak"] == 4.0


def test_the_last_readings_and_the_value_now() -> None:
    evaluator = Evaluator([Watch(compile_condition("any(act.std > 2)"), ALL)], LAYERS)
    for step in range(200):
        evaluator.feed(
            frame_of(step, act_std=[step, NAN if step == 190 else 1, None if step % 2 else 2]), None
        )
    steps, values = evaluator.readings("act.std", 0)
    assert steps == tuple(range(140, 200))
    assert values == tuple(map(float, range(140, 200)))
    assert math.isnan(evaluator.readings("act.std", 1)[1][50])
    assert evaluator.readings("act.std", 2)[0] == tuple(range(140, 200, 2))
    assert [evaluator.value("act.std", layer) for layer in (0, 1, 2, None)] == [199.0, 1.0, None, None]
    with pytest.raises(KeyError):
        evaluator.readings("loss", None)


def test_a_clock_can_be_the_subject() -> None:
    evaluator = Evaluator([Watch(compile_condition("step > 2"), ALL)], LAYERS)
    evaluator.feed(Frame(3), None)
    assert evaluator.readings("step", None) == ((3,), (3.0,))
    assert evaluator.value("step", None) == 3.0


def test_a_model_without_layers() -> None:
    none = np.zeros(0, np.bool_)
    texts = ["any(act.std > 2)", "worst(act.std) > 2", "act.std > 2", "loss > 2"]
    evaluator = Evaluator([Watch(compile_condition(text), none) for text in texts], 0)
    evaluator.feed(Frame(0, {"loss": 3.0}), None)
    assert [bool(evaluator.truth(index).known.any()) for index in range(4)] == [False, False, False, True]
