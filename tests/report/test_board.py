from __future__ import annotations

import math

import numpy as np

from stepguard.report.board import ROWS, Board, Trail
from stepguard.rules.alert import Change, Evidence
from stepguard.signals import Frame, Layer, Vector

BOARD = """\
stepguard ────────────────────────────────────────────────────────────────────────────────────────────
step 9   loss █▇▆▆▅▄▃▃▂▁ 1.1   grad norm 0.5   lr 0.1   rising-crash
layer  type    std                                 near zero  dead  grad norm    update  alerts
a      Conv2d  ▄▄▄▄▄▄▄▄▄▄                       1        50%   10%        0.2   0.00123  rising-crash
b      ReLU                                     -          -     -          -         -
c      Linear  ▁▂▃▄▅▅▆▇█×                     nan       100%   25%        0.3      0.01  dead-layer"""  # noqa: RUF001


def vector(*values: float | None) -> Vector:
    known = np.array([value is not None for value in values])
    return Vector(np.array([value or 0 for value in values], np.float32), known)


def frame(step: int) -> Frame:
    vectors = {
        "act.std": vector(1, None, math.nan if step == 9 else 1 + step),
        "act.near_zero": vector(0.5, None, 1.0),
        "act.dead": vector(0.1, None, 0.25),
        "grad.norm": vector(0.2, None, 0.3),
        "update.ratio": vector(0.00123, None, 0.01),
    }
    return Frame(step, {"loss": 2 - step / 10, "grad_norm": 0.5, "lr": 0.1}, vectors)


LAYERS = [Layer("a", "Conv2d"), Layer("b", "ReLU"), Layer("c", "Linear")]


def change(rule: str, layer: str | None, state: str = "firing", layers: tuple[str, ...] = ()) -> Change:
    evidence = Evidence("act.std", 1.0, layers=layers) if state == "firing" else None
    return Change(5, rule, layer, state, "critical", evidence=evidence)  # type: ignore[arg-type]


def full_board() -> Board:
    board = Board()
    for step in range(10):
        board.take(frame(step), LAYERS)
    board.change([change("rising-crash", None, layers=("a",)), change("dead-layer", "c")])
    return board


def test_the_whole_board(render) -> None:
    assert render(full_board().render(100), width=102) == BOARD


def test_a_narrow_board_drops_the_types_and_shortens_the_courses(render) -> None:
    lines = render(full_board().render(80), width=80).splitlines()
    assert lines[2].split() == ["layer", "std", "near", "zero", "dead", "grad", "norm", "update", "alerts"]
    assert lines[3].split()[:-1] == ["a", "▄" * 10, "1", "50%", "10%", "0.2", "0.00123"]


def test_alerts_leave_the_board_when_they_are_over(render) -> None:
    board = full_board()
    assert board.change([change("rising-crash", None, "inactive")]) == {"rising-crash": 1}
    assert board.change([change("dead-layer", "c", "inactive")]) == {"dead-layer": 1}
    assert board.change([change("dead-layer", "c", "inactive")]) == {}, "it did not fire"
    text = render(board.render(100), width=100)
    assert "rising-crash" not in text
    assert "dead-layer" not in text


def test_a_step_that_was_not_sampled_keeps_the_layers(render) -> None:
    board = full_board()
    board.take(Frame(10, {"loss": 1.0}), LAYERS)
    lines = render(board.render(100), width=100).splitlines()
    assert lines[1].startswith("step 10 ")
    assert lines[3].split()[:3] == ["a", "Conv2d", "▄" * 10]


def test_before_anything_is_measured(render) -> None:
    board = Board()
    board.take(Frame(0, {"loss": 2.0}), LAYERS)
    assert render(board.render(100)).splitlines()[1:] == ["step 0   loss ▄ 2"]


def many(board: Board, std: list[float]) -> list[Layer]:
    layers = [Layer(f"layer{i}", "Linear") for i in range(len(std))]
    board.take(Frame(0, {}, {"act.std": vector(*std)}), layers)
    return layers


def shown(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.startswith("layer") and "Linear" in line]


def test_the_height_is_bounded_and_the_rest_is_counted(render) -> None:
    board = Board()
    many(board, [1.0] * 100)
    text = render(board.render(100, rows=50), width=100)
    assert len(shown(text)) == ROWS
    assert text.endswith(f"... and {100 - ROWS} more")
    assert len(shown(render(board.render(100, rows=3), width=100))) == 3


def test_firing_layers_are_shown_before_odd_ones_in_depth_order(render) -> None:
    board = Board()
    many(board, [1.0] * 40 + [1e-4, 100.0, math.inf] + [1.0] * 40)
    board.change([change("dead-layer", "layer77")])
    assert shown(render(board.render(100, rows=3), width=100)) == ["layer40", "layer42", "layer77"]


def test_long_names_keep_their_tail(render) -> None:
    board = Board()
    name = "features.denseblock3.denselayer12.conv1"
    board.take(Frame(0, {}, {"act.std": vector(1.0)}), [Layer(name, "Conv2d")])
    assert "...block3.denselayer12.conv1" in render(board.render(100), width=120)


def test_a_trail_keeps_the_whole_course_in_bounded_room() -> None:
    trail = Trail(8)
    for value in range(1000):
        trail.push(value)
    assert len(trail.values) <= 8
    assert trail.values[0] == 0
    steps = np.diff(trail.values)
    assert (steps == steps[0]).all()
    assert trail.values[-1] >= 1000 - steps[0]
