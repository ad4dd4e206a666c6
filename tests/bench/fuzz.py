"""Rule files of nonsense: whatever the bytes, loading gives rules or a RuleFileError, soon, in little room.

    python tests/bench/fuzz.py [--inputs 1000000] [--seed 0]

Inputs are the shipped packs rule by rule and the bad files of the tests, changed at random; with atheris
installed (the extra `fuzz`) libFuzzer changes them and keeps what reaches new code. The first input that
fails otherwise, or takes longer than ten seconds, ends the run with its bytes and exit code 1.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import yaml

SLOWEST = 10.0
"""Seconds of the processor for one input."""
ROOT = Path(__file__).parents[2]
PIECES = (
    b"!!python/object/apply:os.system", b"&a", b"*a", b"<<:", b"[" * 200, b"(" * 200, b"not " * 100, b"\0",
    b"__import__('os')", b"().__class__", "\u0430ct.std".encode(), "\uff11".encode(), b"\xff\xfe", b"\t",
    b"1e-8", b"1e999", b"-1", b"0", b"%", b"..30%", b"extends: fuzz", b"{rise:.1f}", b"{value:999999}",
    b"|\n",
)  # fmt: skip


def corpus() -> list[bytes]:
    """Small rule files: every rule of every pack by itself, and the bad files."""
    found = [path.read_bytes() for path in sorted((ROOT / "tests/rules/bad").glob("*.yaml"))]
    for pack in sorted((ROOT / "rules").glob("*.yaml")):
        for rule in yaml.safe_load(pack.read_bytes())["rules"]:
            found.append(yaml.safe_dump({"version": 1, "rules": [rule]}).encode())
    return [data for data in found if len(data) < 4096]


def changed(seeds: list[bytes], chance: random.Random) -> bytes:
    """A seed with a few places cut, doubled, overwritten, or filled with a piece or a bit of another seed."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 6)):
        at, length = chance.randint(0, len(data)), chance.randint(0, 20)
        other = chance.choice(seeds)
        begin = chance.randrange(len(other))
        filling = (
            b"", data[at : at + length] * 2, bytes([chance.randrange(256)]), chance.choice(PIECES),
            other[begin : begin + length],
        )  # fmt: skip
        data[at : at + chance.choice((0, length))] = chance.choice(filling)
    return bytes(data)


def loader(folder: Path) -> Callable[[bytes], None]:
    """Loads bytes as a user's file; raises what no file may raise."""
    from stepguard.errors import RuleFileError  # noqa: PLC0415 - after atheris is set to watch it
    from stepguard.rules.packs import load_rules  # noqa: PLC0415

    file = folder / "fuzz.yaml"

    def load(data: bytes) -> None:
        file.write_bytes(data)
        began = time.process_time()
        with suppress(RuleFileError):
            load_rules([file])
        if (took := time.process_time() - began) > SLOWEST:
            raise TimeoutError(f"{took:.1f} s for one input")

    return load


def at_random(load: Callable[[bytes], None], inputs: int, seed: int) -> int:
    """Without atheris; 1 if an input failed."""
    seeds, chance, began = corpus(), random.Random(seed), time.time()
    for number in range(1, inputs + 1):
        data = changed(seeds, chance)
        try:
            load(data)
        except BaseException as fault:
            print(f"input {number}: {fault!r}\n{data!r}", flush=True)
            return 1
        if number % 10_000 == 0:
            print(f"{number} inputs, {time.time() - began:.0f} s", flush=True)
    print(f"{inputs} inputs: each gave rules or a RuleFileError")
    return 0


def with_atheris(folder: Path, inputs: int, seed: int) -> None:
    """By libFuzzer, which ends the process itself."""
    import atheris  # noqa: PLC0415 - an extra

    with atheris.instrument_imports(include=["stepguard", "yaml"]):
        load = loader(folder)
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, data in enumerate(corpus()):
        (seeds / str(number)).write_bytes(data)
    options = [f"-runs={inputs}", f"-seed={seed + 1}", f"-timeout={SLOWEST:.0f}", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(seeds)], load)
    atheris.Fuzz()


def main() -> int:
    """Fuzz; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # a file that `extends` others finds none here
        if find_spec("atheris") is not None:
            with_atheris(Path(name), args.inputs, args.seed)
        return at_random(loader(Path(name)), args.inputs, args.seed)


if __name__ == "__main__":
    raise SystemExit(main())
