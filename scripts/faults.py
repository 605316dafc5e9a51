"""What can go wrong outside the program, at random: kills, power cuts, damaged, missing and foreign files, closed streams.

Right is what a user can trust: a run that was interrupted ends bit for bit as one that was not, and a file that is not what was
written is refused with one line that names it, or makes no difference. Prints tried and right per kind; exit status 1 unless
all are right. Tries follow from ``--seed`` but for what a random kill happens to hit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

RUN = [
    *("model=mlp", "model.width=8", "method=sparsevd", "train.epochs=12", "train.batch_size=20"),
    *("dataset.subset=400", "dataset.test_subset=200", "runtime.snapshots=4", "runtime.threads=1"),
]
BIN = Path(sys.executable).parent
VARYING = ("seconds", "core_seconds", "provenance", "files", "sha256")
JOBS = 2
TIMEOUT = 300
KEPT = ("result.json", "metrics.jsonl", "weights.pt", "epoch-4.pt", "lock")  # of a finished run
COMPARED = ("weights.pt", "epoch-8.pt", "epoch-12.pt")  # those that no try damages before the end
RESUMED = ("metrics.jsonl", "checkpoint.pt", "epoch-4.pt", "lock")  # of one that is to go on


@dataclass
class Outcome:
    """What a program answered."""

    status: int
    out: str
    err: str

    @property
    def refused(self) -> bool:
        """One line and status 2, as a user is told of what he can mend."""
        return self.status == 2 and len(self.err.splitlines()) == 1 and self.err.startswith("svdo: ")


class Campaign:
    """A finished run, the same stopped in its middle, and another's; every try takes a copy of what it damages."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance = folder, random.Random(seed)
        self.whole, self.half, self.foreign, self.foreign_half = (
            folder / n for n in ("whole", "half", "foreign", "foreign_half")
        )
        with ThreadPoolExecutor(JOBS) as pool:
            list(
                pool.map(
                    lambda item: item(),
                    [
                        lambda: must(program("svdo-run", *RUN, f"results_dir={self.whole}")),
                        lambda: must(program("svdo-run", *RUN, "seed=1", f"results_dir={self.foreign}")),
                        lambda: kill_after(self.half, 6, *RUN),
                        lambda: kill_after(self.foreign_half, 6, *RUN, "seed=1"),
                    ],
                )
            )
        self.expected = measured(self.whole)
        self.numbers = iter(range(10**9))

    def copy(self, store: Path) -> Path:
        """A copy of the store to damage."""
        place = self.folder / f"try-{next(self.numbers)}"
        shutil.copytree(store, place)
        return place

    def kill(self) -> Callable[[], str]:
        """Kill the program, twice, at any moment of a training; then let it end."""
        store, moments = self.folder / f"try-{next(self.numbers)}", [self.chance.uniform(0.0, 6.0) for _ in range(2)]

        def attempt() -> str:
            for moment in moments:
                process = start("svdo-run", *RUN, f"results_dir={store}")
                try:
                    process.wait(moment)
                except subprocess.TimeoutExpired:
                    process.kill()
                process.communicate()
            return self._ends_equal(store)

        return attempt

    def power_cut(self) -> Callable[[], str]:
        """Copy the disk that a training writes to, at any moment, and go on from the copy."""
        place, delay = self.folder / f"try-{next(self.numbers)}", self.chance.uniform(0.0, 1.5)

        def attempt() -> str:
            place.mkdir()
            disk, cut = place / "disk.img", place / "cut.img"
            with open(disk, "wb") as file:
                file.truncate(96 * 2**20)
            call("mkfs.ext4", "-q", "-F", str(disk))
            mounted = [place / "m", place / "n"]
            for folder in mounted:
                folder.mkdir()
            call("mount", "-o", "loop", str(disk), str(mounted[0]))
            try:
                process = start("svdo-run", *RUN, f"results_dir={mounted[0] / 'r'}")
                until(lambda: list(mounted[0].glob("r/runs/*/checkpoint.pt")), process)
                time.sleep(delay)
                call("cp", "--sparse=always", str(disk), str(cut))
                process.kill()
                process.communicate()
                call("mount", "-o", "loop", str(cut), str(mounted[1]))
                return self._ends_equal(mounted[1] / "r")
            finally:
                for folder in mounted:
                    subprocess.run(["umount", str(folder)], capture_output=True, check=False)

        return attempt

    def damage(self, store: Path, name: str, way: str) -> Callable[[], str]:
        """Flip a bit of a file, cut it short or delete it; finished runs are read by a child, a report and verify."""
        copy = self.copy(store)
        (path,) = copy.glob(f"runs/*/{name}")
        content = bytearray(path.read_bytes())
        if way == "flip" and content:
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
        elif way == "cut":
            content = content[: self.chance.randrange(len(content) + 1)]
        if way == "delete":
            path.unlink()
        else:
            path.write_bytes(content)
        if store == self.half:
            return lambda: self._ends_equal(copy, refusing=name)
        return lambda: self._is_noticed(copy, name)

    def swap(self, store: Path, name: str) -> Callable[[], str]:
        """Another run's file in the place of this one's."""
        copy, other = self.copy(store), self.foreign if store == self.whole else self.foreign_half
        ((path,), (stranger,)) = copy.glob(f"runs/*/{name}"), other.glob(f"runs/*/{name}")
        shutil.copy(stranger, path)
        if store == self.half:
            return lambda: self._ends_equal(copy, refusing=name)
        return lambda: self._is_noticed(copy, name)

    def closed(self, streams: str, report: bool) -> Callable[[], str]:
        """A program whose input, output or error stream is closed does its work all the same."""
        store = self.copy(self.half)

        def attempt() -> str:
            command = [str(BIN / "svdo-run"), *RUN, f"results_dir={store}"]
            if report:
                command = [str(BIN / "svdo-report"), "verify", f"results_dir={store}"]
            done = subprocess.run(
                ["sh", "-c", f'"$@" {streams}', "sh", *command], capture_output=True, timeout=TIMEOUT, check=False
            )
            if done.returncode:
                return f"status {done.returncode}: {done.stderr.decode()[-200:]}"
            return "" if report or measured(store) == self.expected else "another result"

        return attempt

    def _ends_equal(self, store: Path, refusing: str = "") -> str:
        done = program("svdo-run", *RUN, f"results_dir={store}")
        if refusing and done.refused and refusing in done.err:
            return ""
        if done.status:
            return f"status {done.status}: {done.err[-300:]}"
        return "" if measured(store) == self.expected else "another result"

    def _is_noticed(self, store: Path, name: str) -> str:
        """Named by verify; or harmless: then a run that starts from this one is what it would have been."""
        found = program("svdo-report", "verify", f"results_dir={store}")
        if found.status == 2 and name in found.out and "Traceback" not in found.err:
            again = program("svdo-run", *RUN, f"results_dir={store}")
            right = again.status == 0 or (again.refused and name in again.err)
            return "" if right else f"noticed, but then status {again.status}: {again.err[-300:]}"
        if found.status:
            return f"verify: status {found.status}: {found.err[-300:]}"
        return self._ends_equal(store)


def start(name: str, *arguments: str) -> subprocess.Popen[str]:
    """A program of this environment in the background."""
    command = [str(BIN / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def program(name: str, *arguments: str) -> Outcome:
    """What a program of this environment answers."""
    process = start(name, *arguments)
    out, err = process.communicate(timeout=TIMEOUT)
    return Outcome(process.returncode, out, err)


def must(done: Outcome) -> None:
    """Stop where what all tries start from does not work."""
    if done.status:
        sys.exit(f"the run itself fails: {done.err}")


def call(*command: str) -> None:
    """A tool of the system."""
    subprocess.run(command, capture_output=True, check=True)


def until(holds: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for something that the process does, or its end."""
    while not holds() and process.poll() is None:
        time.sleep(0.01)


def kill_after(store: Path, epochs: int, *overrides: str) -> None:
    """Train, and kill the program when so many epochs are saved."""
    process = start("svdo-run", *overrides, f"results_dir={store}")
    logs = "runs/*/metrics.jsonl"
    until(lambda: any(path.read_bytes().count(b"\n") > epochs for path in store.glob(logs)), process)
    process.kill()
    process.communicate()
    if not list(store.glob("runs/*/checkpoint.pt")):
        sys.exit("the run ended before it could be killed")


def measured(store: Path) -> list[object]:
    """All that a run measured, without times and origin, and its weights."""
    (folder,) = (store / "runs").iterdir()
    record = json.loads((folder / "result.json").read_bytes())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tensors = [record["files"][name] for name in COMPARED]
    return [*({key: value for key, value in item.items() if key not in VARYING} for item in (record, *lines)), tensors]


def can_mount(folder: Path) -> bool:
    """Whether this user can make a file a disk."""
    disk, place = folder / "probe.img", folder / "probe"
    place.mkdir()
    try:
        with open(disk, "wb") as file:
            file.truncate(8 * 2**20)
        call("mkfs.ext4", "-q", "-F", str(disk))
        call("mount", "-o", "loop", str(disk), str(place))
        call("umount", str(place))
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def tries(campaign: Campaign, count: int, mounts: bool) -> list[tuple[str, Callable[[], str]]]:
    """``count`` rounds over all kinds, each with its name."""
    found: list[tuple[str, Callable[[], str]]] = []
    for _ in range(count):
        found.append(("kill -9", campaign.kill()))
        found += [("power cut", campaign.power_cut())] if mounts else []
        for store, names in ((campaign.whole, KEPT), (campaign.half, RESUMED)):
            state = "finished" if store == campaign.whole else "half"
            name = campaign.chance.choice(names)
            found += [
                (f"{way} a file of a {state} run", campaign.damage(store, name, way)) for way in ("flip", "cut", "delete")
            ]
            found.append((f"a foreign file in a {state} run", campaign.swap(store, name)))
        streams = campaign.chance.choice(["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
        found += [("closed streams", campaign.closed(streams, report)) for report in (False, True)]
    return found


def main() -> None:
    """Exit status 1 unless all are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=8, help="how often each kind is tried; a round takes half a minute")
    arguments = parser.parse_args()
    tried, right = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="svdo-faults-") as folder:
        campaign, mounts = Campaign(Path(folder), arguments.seed), can_mount(Path(folder))
        if not mounts:
            print("power cuts are skipped: they need root, to mount a copy of a disk")
        planned = tries(campaign, arguments.rounds, mounts)
        with ThreadPoolExecutor(JOBS) as pool:
            for (kind, _), fault in zip(planned, pool.map(lambda item: item[1](), planned), strict=True):
                tried[kind] += 1
                right[kind] += not fault
                if fault:
                    print(f"{kind}: {fault}", flush=True)
    for kind, count in tried.items():
        print(f"{kind:<34} {count:>4} tried {right[kind]:>4} right")
    print(f"{'all':<34} {tried.total():>4} tried {right.total():>4} right")
    sys.exit(tried != right)


if __name__ == "__main__":
    main()
