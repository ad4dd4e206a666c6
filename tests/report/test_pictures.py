from __future__ import annotations

import numpy as np

from stepguard.report.pictures import Pictures, track
from stepguard.report.summary import AlertCount
from stepguard.signals import HIST_BINS, Frame, Layer, Vector

LAYERS = [Layer("a", "Conv2d"), Layer("b", "ReLU"), Layer("c", "Linear")]


def vector(*values: float | None) -> Vector:
    known = np.array([value is not None for value in values])
    return Vector(np.array([value or 0 for value in values], np.float32), known)


def frames(n: int = 20) -> list[Frame]:
    """Loss at every step; layers at every second one, with the std of `c` climbing from 0 to 1."""
    made: list[Frame] = []
    for step in range(n):
        frame = Frame(step, {"loss": 2.0 - step / n, "lr": 0.1})
        if step % 2 == 0:
            hist = np.zeros((3, HIST_BINS + 1), np.int32)
            hist[:, 0] = step + 1
            frame.hist = hist
            frame.vectors = {"act.std": vector(1, None, step / n), "act.near_zero": vector(0.5, 0.5, np.nan)}
        made.append(frame)
    return made


def test_track_holds_the_shown_layers_only(blocks) -> None:
    found = track(blocks(frames()), LAYERS, [0, 2])
    assert found.layers == (LAYERS[0], LAYERS[2])
    assert found.steps.tolist() == list(range(20))
    assert found.sampled.tolist() == list(range(0, 20, 2))
    assert found.scalars["loss"][-1] == 1.05
    assert np.isnan(found.scalars["grad_norm"]).all()
    assert found.vectors["act.std"].shape == (10, 2)
    np.testing.assert_allclose(found.vectors["act.std"][:, 1], np.arange(0, 20, 2) / 20, rtol=1e-6)
    assert np.isinf(found.vectors["act.near_zero"][:, 1]).all(), "measured, but not finite"
    assert np.isnan(found.vectors["act.dead"]).all(), "never measured"
    assert found.hist[:, 1, 0].tolist() == list(range(1, 21, 2))


def test_what_was_not_measured_is_absent(blocks) -> None:
    assert np.isnan(track(blocks(frames()), LAYERS, [1]).vectors["act.std"]).all()


def test_three_pictures_a_layer_beside_each_other(render, blocks) -> None:
    text = render(Pictures(track(blocks(frames()), LAYERS, [0, 2])), width=100)
    blocks = [block.splitlines() for block in text.split("\n\n")]
    run, first, second = blocks
    assert run[0].split() == ["loss", "1.05"], "a learning rate that does not move is left out"
    assert first[0] == "a Conv2d"
    assert second[0] == "c Linear"
    assert " ".join(second[1].split()) == "mean - std 0.9 abs(x), log of counts near zero inf dead -"
    assert max(map(len, text.splitlines())) <= 100
    assert len(first) == 1 + 1 + 6 + 1, "name, titles, six rows, steps"


def test_a_narrow_terminal_stacks_them(render, blocks) -> None:
    text = render(Pictures(track(blocks(frames()), LAYERS, [0])), width=40)
    assert max(map(len, text.splitlines())) <= 40
    assert sum(line.startswith("abs(x)") for line in text.splitlines()) == 1


def test_alerts_stand_beside_their_layers(render, blocks) -> None:
    alert = AlertCount("dead-layer", "warning", 7, 1, ("c",))
    text = render(Pictures(track(blocks(frames()), LAYERS, [0, 2]), [alert]), width=100)
    assert "\na Conv2d\n" in text
    assert "\nc Linear  dead-layer from step 7\n" in text


def test_a_run_without_frames_or_measured_layers(render, blocks) -> None:
    assert render(Pictures(track([], LAYERS, [0]))) == "\na Conv2d\nnothing was measured here"
    assert "nothing was measured here" in render(
        Pictures(track(blocks([Frame(0, {"loss": 1.0})]), LAYERS, [0]))
    )
