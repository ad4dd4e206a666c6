"""The processes of a distributed training, and what they tell each other.

Flow: in go words, over the store of the process group, and rows of numbers, over a group of our own; out
comes what every rank has said. What fails, or takes no part, leaves this rank apart: it asks nobody any more,
so a training waits for no longer than its own collectives make it wait.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

Rows = NDArray[np.float64]

_PATIENCE = 60.0
"""Seconds in which a word of every rank must come; the first backward pass has brought them together."""
_LOOK = timedelta(seconds=2)
"""While numbers are waited for: how often to look whether a rank has left."""
_GUARDS = itertools.count()
"""Guards of this process: every rank makes them in the same order."""
_groups: dict[Any, Any] = {}
"""Our group, by the process group that it belongs to."""


class Ranks:
    """Of a training in one process: nobody else is to be asked."""

    rank, count = 0, 1
    apart = False
    """Whether the ranks cannot agree, so that nothing may be changed on this one alone."""

    @property
    def main(self) -> bool:
        """Whether this is the rank that records and prints."""
        return self.rank == 0

    def beside(self, run_path: Path) -> Path:
        """Beside which name this rank's snapshots lie: the run file's, and for further ranks one like it."""
        if self.main:
            return run_path
        return run_path.with_name(f"{run_path.stem}.rank{self.rank}{run_path.suffix}")

    def gather(self, word: str, value: Any) -> list[Any] | None:
        """What each rank says, as JSON has it; None if one of them says nothing."""
        return [value]

    def of_main(self, word: str, value: Any) -> Any:
        """What rank 0 says; None if it says nothing."""
        return value

    def exchange(self, row: Rows) -> Rows | None:
        """The rows of all ranks, shape [ranks, numbers]; None if they do not come together."""
        return row[None]

    def same(self, step: int | None) -> int | None:
        """A step that all ranks name; None if they do not."""
        return step

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Make these tensors what they are on rank 0."""

    def leave(self) -> None:
        """Take no more part: ranks that go on wait for this one no longer."""

    def part(self, why: str) -> None:
        """Ask nobody any more."""


class DistributedRanks(Ranks):
    """The ranks of the default process group.

    Args:
        complain: told why the ranks do not agree, as a sentence.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._complain = complain
        store = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
        prefix = f"stepguard/{next(_GUARDS)}"
        self._store = dist.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]
        self._said: Counter[str] = Counter()
        self._group: Any = None

    def gather(self, word: str, value: Any) -> list[Any] | None:
        """What each rank says; waits for all of them, a minute at most."""
        key = self._say(word, value)
        return None if key is None else self._hear(key, range(self.count))

    def of_main(self, word: str, value: Any) -> Any:
        """What rank 0 says, which itself waits for nobody."""
        key = self._say(word, value if self.main else None)
        if self.main:
            return value
        heard = None if key is None else self._hear(key, [0])
        return None if heard is None else heard[0]

    def _say(self, word: str, value: Any) -> str | None:
        """Lay down a word; its key, None where that fails."""
        self._said[word] += 1
        key = f"{word}/{self._said[word]}"
        try:
            self._store.set(f"{key}/{self.rank}", json.dumps(value))
        except Exception as fault:
            self.part(f"the ranks cannot be asked ({type(fault).__name__}: {fault})")
            return None
        return key

    def _hear(self, key: str, ranks: Sequence[int]) -> list[Any] | None:
        until = time.monotonic() + _PATIENCE
        try:
            for rank in ranks:
                while not self._store.check([f"{key}/{rank}"]):
                    if self.apart:
                        return None
                    if time.monotonic() > until or self._someone_left():
                        self.part(f"rank {rank} is not guarded, or not at this step")
                        return None
                    time.sleep(0.005)
            return [json.loads(self._store.get(f"{key}/{rank}")) for rank in ranks]
        except Exception as fault:
            self.part(f"the ranks cannot be asked ({type(fault).__name__}: {fault})")
            return None

    def exchange(self, row: Rows) -> Rows | None:
        """The rows of all ranks, once all of them have given theirs; all must be as long."""
        if self._joined() is None:
            return None
        try:
            rows = torch.empty(self.count, len(row), dtype=torch.float64)
            work = dist.all_gather(
                list(rows.unbind()), torch.from_numpy(row), group=self._group, async_op=True
            )
            return rows.numpy() if self._comes(work) else None
        except Exception as fault:
            self.part(f"the ranks came apart ({type(fault).__name__}: {fault})")
            return None

    def _comes(self, work: Any) -> bool:
        """Wait for a collective, unless a rank that has left makes that vain."""
        failed = False
        while True:
            try:
                work.wait(_LOOK)
            except RuntimeError:
                if failed:
                    raise
                failed = work.is_completed()
                if not failed and self._someone_left():
                    self.part("a rank has left")
                    return False
            else:
                return True

    def _joined(self) -> Any:
        """Our group, made once all ranks are known to be here: it waits for them without end."""
        if self.apart or self._group is not None or self.gather("here", None) is None:
            return None if self.apart else self._group
        world = dist.group.WORLD
        try:
            if world not in _groups:
                _groups[world] = dist.new_group(backend="gloo")
            self._group = _groups[world]
        except Exception as fault:
            self.part(f"the ranks cannot be joined ({type(fault).__name__}: {fault})")
        return self._group

    def same(self, step: int | None) -> int | None:
        """A step that all ranks name."""
        rows = self.exchange(np.array([-1 if step is None else step], np.float64))
        if rows is None or rows.min() < 0 or rows.min() != rows.max():
            return None
        return step

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Make these tensors what they are on rank 0, byte for byte."""
        if self._joined() is None:
            return
        try:
            for tensor in tensors:
                here = tensor.detach().cpu().contiguous()
                dist.broadcast(here.flatten().view(torch.uint8), 0, group=self._group)
                tensor.copy_(here)
        except Exception as fault:
            self.part(f"the ranks came apart ({type(fault).__name__}: {fault})")

    def leave(self) -> None:
        """Say that this rank takes no more part."""
        with suppress(Exception):
            self._store.add("left", 1)

    def _someone_left(self) -> bool:
        return self._store.add("left", 0) > 0

    def part(self, why: str) -> None:
        """Ask nobody any more."""
        if not self.apart:
            self.apart = True
            self.leave()
            self._complain(
                f"{why}: from now on rank {self.rank} decides for itself, and neither skips, rolls back nor"
                " changes the learning rate (call watch() and guard.step() alike on every rank)"
            )


def find_ranks(complain: Callable[[str], None]) -> Ranks:
    """The ranks of the training that this process belongs to."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return DistributedRanks(complain)
    return Ranks()


def begin_alike(model: nn.Module, beside: Sequence[Tensor], ranks: Ranks) -> None:
    """Have all ranks begin with the weights of rank 0, at the first forward pass in training mode.

    By then a model that was initialised anew is what it will be. Weights that are cut between the ranks are
    left as they are. Tensors `beside` the model are spread as well.
    """
    if ranks.count == 1 or any(type(parameter) is not nn.Parameter for parameter in model.parameters()):
        return

    def before(module: nn.Module, _args: Any) -> None:
        if module.training:
            handle.remove()
            with torch.no_grad():
                ranks.spread([*module.parameters(), *module.buffers(), *beside])

    handle = model.register_forward_pre_hook(before)
