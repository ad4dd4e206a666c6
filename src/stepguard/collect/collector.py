"""The collector of one model and optimizer: makes a Frame at each step boundary.

Flow: in go forward passes (through the taps), gradients and weights; out comes a Frame, with one transfer
from each device that holds layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from stepguard.collect.coming import Arrived, Coming, any_bad
from stepguard.collect.dropouts import Dropouts
from stepguard.collect.framing import Flags, Framer, Membership, Seating, fill_parameters, finite
from stepguard.collect.layers import as_globs, matches, watched_modules
from stepguard.collect.parameters import SUMS, ParameterBank, ParameterNumbers, banks, joined
from stepguard.collect.samples import ACTIVATION_SIGNALS, Samples
from stepguard.collect.taps import INPUT, Taps
from stepguard.collect.trace import Call
from stepguard.collect.transfer import Transfer
from stepguard.signals import Frame, Layer

_SEATINGS = 100
"""How many sets of layers that are called in the same step are remembered."""
_SOME_LAYERS_ONLY = np.isin(ACTIVATION_SIGNALS, ("act.saturated", "act.variation"))[:, None]


class Collector:
    """Everything that is measured of one model.

    `layers` are known, in depth order, once the first frame is made. `active` says whether the forward passes
    to come are measured; it has to be set before they begin. `asked` are the signals at which rules look.

    Raises:
        StepguardError: `choice` matches no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        choice: str | Sequence[str] | None,
        on_fault: Callable[[Exception], None],
        asked: Collection[str] = (),
    ) -> None:
        self._watched = watched_modules(model, choice)
        globs = as_globs("*" if choice is None else choice)
        self._taps = Taps(model, self._watched, lambda layer: matches(layer, globs), on_fault)
        self._dropouts = Dropouts(model)
        self._optimizer: Optimizer | None = optimizer
        self._on_fault = on_fault
        self._of_optimizer = [p for group in optimizer.param_groups for p in group["params"]]
        self._asked = asked
        self._banks: list[ParameterBank] = []
        self._kept: list[Any] = []
        """Samples of the weights that were loaded, until the banks are made."""
        self._members = Membership([])
        self._settled = self._moved = False
        self.layers: tuple[Layer, ...] = ()
        self._places: dict[str, int] = {}
        self._seatings: dict[tuple[str, ...], Seating] = {}
        self._framer = Framer(0)
        self._flags = Flags(self._members, 0)

    @property
    def active(self) -> bool:
        """Whether the next forward passes are measured."""
        return self._taps.active

    @active.setter
    def active(self, value: bool) -> None:
        self._taps.active = value

    def close(self) -> None:
        """Take all hooks off the model."""
        self._taps.close()

    @torch.no_grad()
    def remember(self, step: int) -> None:
        """Sample the weights before this step, so that the next frame can tell how far they moved."""
        self._settle()
        for bank in self._banks:
            bank.remember(step)

    def state_dict(self) -> dict[str, Any]:
        """The samples of the weights before the last step, from which its update is measured."""
        return {"weights": [bank.kept() for bank in self._banks]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Measure the update of the step that was the last when `state_dict` was taken."""
        self._kept = list(state["weights"])
        if self._settled:
            self._take_up()

    def _take_up(self) -> None:
        for bank, kept in zip(self._banks, self._kept, strict=False):
            if kept is not None:
                bank.keep(*kept)
        self._kept.clear()

    @torch.no_grad()
    def frame(self, step: int, loss: Tensor | None, *, sampled: bool) -> Frame:
        """Make the frame of this step, before its update.

        With `sampled` it holds every signal of the forward passes since the last frame. Without, it holds the
        loss and `grad.nonfinite`. Where the loss or a gradient is not finite, it holds every signal: the last
        forward pass is then made once more (see `trace`).
        """
        self._settle()
        frame, transfer = self._with_loss(step, loss)
        if sampled:
            self._add_activations(frame, transfer)
            self._add_parameters(frame, transfer)
            transfer.run()
            if any(bank.sliced for bank in self._banks) and not finite(frame):
                self._look_closer(frame)
        elif not (self._screen(frame, transfer) and math.isfinite(frame.scalars.get("loss", 0.0))):
            self.remember(step)
            self._taps.trace()
            self._look_closer(frame)
        self._taps.last_call = None
        return self._framer.finish(frame)

    @torch.no_grad()
    def begin(self, step: int, loss: Tensor | None, *, sampled: bool) -> Coming:
        """Begin the frame of this step, before its update, without waiting for the device.

        It is to arrive before the next is begun; by then the device has left the step out if it is bad. Of
        one without `sampled`, `grad.nonfinite` then counts tensors, and the pass made since is forgotten.
        """
        self._settle()
        frame, transfer = self._with_loss(step, loss)
        flags = [flag for bank in self._banks for flag in bank.flags()]
        has_grad, fine, overflow = self._have_grads(), list[bool](), list[float]()
        if sampled:
            self._add_activations(frame, transfer)
            self._add_parameters(frame, transfer)
        else:
            for flag in flags:
                transfer.add([flag], lambda host: fine.extend(np.isfinite(host).tolist()))
        call, self._taps.last_call = self._taps.last_call, None
        bad = any_bad([*flags, *([] if loss is None else [loss])])
        transfer.add([bad], lambda host: overflow.append(host.item()))
        finish = transfer.start()

        def arrive() -> Arrived:
            finish()
            if not sampled:
                self._flags.put(frame, has_grad, fine)
                if overflow[0]:
                    self._trace_late(frame, call)
            return Arrived(self._framer.finish(frame), bool(overflow[0]))

        return Coming(bad, arrive)

    def _trace_late(self, frame: Frame, call: Call | None) -> None:
        transfer, after = Transfer(), self._taps.last_call
        self._taps.forget()
        self._taps.last_call = call
        self._taps.trace()
        self._add_activations(frame, transfer)
        transfer.run()
        self._taps.last_call = after

    def forget(self) -> None:
        """Forget the forward passes since the last frame."""
        self._taps.forget()

    def weights_moved(self) -> None:
        """Read all weights at the next measured step: something else than the optimizer's step moved them."""
        self._moved = True

    def _look_closer(self, frame: Frame) -> None:
        """Measure all there is of a step that was bad and was not to be measured, or not all of it."""
        transfer = Transfer()
        self._add_activations(frame, transfer)
        self._moved = True
        self._add_parameters(frame, transfer)
        transfer.run()

    @torch.no_grad()
    def frame_of_loss(self, step: int, loss: Tensor | None) -> Frame:
        """Make a frame of the loss alone, and forget the forward passes since the last frame."""
        self._settle()
        self.forget()
        frame, transfer = self._with_loss(step, loss)
        transfer.run()
        return frame

    def _settle(self) -> None:
        """Fix the layers, in the order of their depth.

        Not before the first step, since lazy modules have no parameters until their first call.
        """
        if self._settled:
            return
        self._settled = True
        self.layers = tuple(self._taps.settle())
        self._places = {layer.name: place for place, layer in enumerate(self.layers)}
        self._framer = Framer(len(self.layers))
        of_layers = (p for item in self._watched for p in item.parameters)
        parameters = dict.fromkeys([*of_layers, *self._of_optimizer])
        self._banks = banks([p for p in parameters if not is_lazy(p) and p.numel()], self._asked)
        members = {p: i for i, p in enumerate(p for bank in self._banks for p in bank.parameters)}
        pairs = [
            (self._places[item.layer.name], members[parameter])
            for item in self._watched
            for parameter in item.parameters
            if parameter in members
        ]
        self._members = Membership(pairs)
        self._flags = Flags(self._members, len(self.layers))
        self._take_up()

    def _with_loss(self, step: int, loss: Tensor | None) -> tuple[Frame, Transfer]:
        frame, transfer = Frame(step), Transfer()
        if loss is not None:
            transfer.add([loss], lambda host: frame.scalars.update(loss=float(host.item())))
        return frame, transfer

    def _screen(self, frame: Frame, transfer: Transfer) -> bool:
        """Bring over whether the gradients are finite; say so in the frame if all are."""
        fine = list[bool]()
        for bank in self._banks:
            transfer.add(bank.screen(), lambda *host: fine.extend(math.isfinite(x.item()) for x in host))
        transfer.run()
        if all(fine):
            self._flags.put(frame, self._have_grads())
        return all(fine)

    def _have_grads(self) -> list[bool]:
        return [has for bank in self._banks for has in bank.has_grad]

    def _add_activations(self, frame: Frame, transfer: Transfer) -> None:
        frame.scalars |= self._dropouts.scalars()
        for samples, name_of in self._taps.groups():
            transfer.add(samples.parts(), partial(self._put_outputs, frame, samples, name_of))

    def _put_outputs(
        self, frame: Frame, samples: Samples, name_of: Callable[[int], str], *host: NDArray[np.floating]
    ) -> None:
        outputs = samples.signals(*host)
        names = tuple(map(name_of, outputs.called))
        seating = self._seatings.get(names)
        if seating is None:
            if len(self._seatings) == _SEATINGS:
                self._seatings.clear()
            seating = self._seatings[names] = Seating(names, outputs.called, self._places)
        if INPUT in names:
            row = outputs.called[names.index(INPUT)]
            of_input = dict(zip(ACTIVATION_SIGNALS, outputs.signals[:, row].tolist(), strict=True))
            for what in ("mean", "std", "absmax", "nonfinite"):
                frame.scalars[f"input.{what}"] = of_input[f"act.{what}"]
        if seating.any:
            signals = outputs.signals[:, seating.rows]
            # NaN means absence where a layer cannot have the signal: an unbounded activation, a batch of one.
            known = ~(np.isnan(signals) & _SOME_LAYERS_ONLY)
            self._framer.fill(ACTIVATION_SIGNALS, seating.places, signals, known)
            self._framer.fill_hist(seating.places, outputs.hist[seating.rows])

    def _add_parameters(self, frame: Frame, transfer: Transfer) -> None:
        everything, self._moved = self._moved, False
        found: dict[int, ParameterNumbers] = {}
        for place, bank in enumerate(self._banks):

            def finish(*host: NDArray[np.floating], place: int = place, bank: ParameterBank = bank) -> None:
                # Devices come in any order, and a layer may have parameters on several.
                found[place] = bank.numbers(*host)
                if len(found) == len(self._banks):
                    self._put_parameters(frame, joined([found[i] for i in range(len(found))]))

            transfer.add([*bank.parts(everything=everything), *self._second_moments(bank)], finish)

    def _second_moments(self, bank: ParameterBank) -> list[Tensor]:
        """What the gradients compare with; nothing of an optimizer that cannot be read."""
        if self._optimizer is None:
            return []
        try:
            return bank.second_moments(self._optimizer)
        except Exception as fault:
            self._optimizer = None
            self._on_fault(fault)
            return []

    def _put_parameters(self, frame: Frame, numbers: ParameterNumbers) -> None:
        fill_parameters(self._framer, self._members, numbers)
        there, squares = (numbers.sums[SUMS.index(name)] for name in ("with grad", "grad squares"))
        if there.any():
            frame.scalars["grad_norm"] = float(np.sqrt(squares.sum()))
