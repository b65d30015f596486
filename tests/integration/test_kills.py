"""kill -9 at 50 moments, of the trainer, its uploader or both: the run always ends bit for bit the same.

Each kill is meant for a zone (in the copy, between manifest and HEAD, ...) and has to come there; within it the moment
is random.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from checkpoints.commit.head import Head, read_head
from checkpoints.restore.shard_restore import verify
from checkpoints.run_log.run_record import open_run
from checkpoints.snapshot.shared_memory import RunMemory
from checkpoints.storage.base import Store
from tests.integration.loop_script import STEPS
from tests.support.killing import ENVIRONMENT, Kill
from trainer.runtime.process_tree import adopt_orphans, any_descendant

KILLS = Counter(
    {
        "claim": 6,
        "restore": 9,
        "copy": 8,
        "upload": 9,
        "between manifest and HEAD": 6,
        "HEAD": 3,
        "retention": 6,
        "any": 3,
    }
)
KILLS_PER_RUN = 10
LONGEST_DELAY_S = {"any": 0.7}
"""After the start of the process; of other kills: after the start of an operation that takes about a millisecond."""


def draw(zone: str, generator: random.Random) -> Kill:
    """A kill in that zone: whose, at which operation, and how far in it."""
    when = generator.choice(("before", "during", "after"))
    victims = generator.choice(("self", "partner", "both"))
    delay_s = generator.uniform(0, LONGEST_DELAY_S.get(zone, 0.002))
    trainer = Kill(zone, "trainer", when=when, victims=victims, delay_s=delay_s)
    uploader = trainer._replace(role="uploader")
    match zone:
        case "claim":  # before there is an uploader
            return trainer._replace(operations=("create", "swap"), key="HEAD", victims="self")
        case "restore":
            return generator.choice(
                (
                    trainer._replace(operations=("get",), key="manifests/"),
                    trainer._replace(operations=("get",), key="data/"),
                    trainer._replace(operations=("open_shared",)),  # of this machine's memory
                    trainer._replace(operations=("read_into",), key="data/"),
                )
            )._replace(victims=generator.choice(("self", "both")))
        case "copy":  # four tensors in the first or in the second save
            return trainer._replace(operations=("copy",), count=generator.randint(1, 8))
        case "upload":  # chunk, index, chunk, index
            return uploader._replace(operations=("create",), key="data/", count=generator.randint(1, 4))
        case "between manifest and HEAD":
            return generator.choice(
                (
                    uploader._replace(operations=("create",), key="manifests/", when="after"),
                    uploader._replace(operations=("swap",), key="HEAD", when="before"),
                )
            )
        case "HEAD":  # written, or not, and the trainer never hears of it
            return uploader._replace(operations=("swap",), key="HEAD")
        case "retention":  # chunk, index, manifest; then HEAD forgets the tombstone
            return uploader._replace(operations=("delete",), count=generator.randint(1, 3))
        case _:
            return trainer._replace(operations=(), victims=generator.choice(("self", "both")))


def start(bucket: Path, run: str, environment: dict[str, str], gone: str = "") -> subprocess.Popen[str]:
    script = Path(__file__).with_name("loop_script.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(bucket), run, gone],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **environment},
    )


def digests(text: str) -> dict[int, str]:
    """Step -> digest; a last line that was cut short doesn't count."""
    lines = [line.split() for line in text.splitlines() if len(line.split()) == 2 and len(line.split()[1]) == 16]
    return {int(step): digest for step, digest in lines}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    bucket = tmp_path_factory.mktemp("truth")
    process = start(bucket, "whole", {"PYTHONPATH": str(Path(__file__).parents[2])})
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(digests(out)) == STEPS
    return digests(out)


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path, truth: dict[int, str]) -> None:
    adopt_orphans()  # uploaders whose trainer was killed come to us, and are looked at below
    generator = random.Random(3)
    zones = generator.sample([*KILLS.elements()], KILLS.total())
    died: Counter[str] = Counter()
    runs = starts = resumed = missed = 0
    while zones:
        runs += 1
        run, kills, finished = f"killed-{runs}", 0, False
        store = open_run(str(tmp_path), run)
        while not finished:
            head = read_head(store)
            if head is not None and head.commits:
                verify(store, head.commits[0])  # a kill leaves nothing to fall back from
            kill = choose(zones, head, generator) if zones and kills < KILLS_PER_RUN else None
            if kill is not None and "read_into" in kill.operations and head is not None:
                RunMemory(store.url).forget(head.writer.id)  # the next one is on another machine
            deed = tmp_path / f"deed-{starts}"
            armed = kill.environment(deed) if kill is not None else {}
            process = start(tmp_path, run, ENVIRONMENT | armed, head.writer.id if head else "")
            out, _ = process.communicate(timeout=120)
            starts += 1
            steps = digests(out)
            for step, digest in steps.items():
                assert truth[step] == digest, f"step {step} of {run} differs after {kill}"
            resumed += min(steps, default=1) > 1
            finished = process.returncode == 0
            if kill is not None and deed.exists():
                kills += 1
                died[kill.zone] += 1
                if kill.zone in zones:
                    zones.remove(kill.zone)
            else:
                assert finished, f"{run} failed, and not by our hand"
                missed += kill is not None
            assert missed <= 10, f"the kills do not come to their points: {zones} are left"
        check_end(store)
    assert died >= KILLS
    assert KILLS.total() == 50
    assert resumed > KILLS.total() / 4, "the kills must hit runs that had saved something"
    deadline = time.monotonic() + 60
    while any_descendant("checkpoints.save.uploader"):
        assert time.monotonic() < deadline, "an uploader lives on as an orphan"
        time.sleep(0.1)


def choose(zones: list[str], head: Head | None, generator: random.Random) -> Kill:
    """The next one that can happen; if none can, one more than planned, which comes after some commits."""
    restorable = head is not None and head.commits
    return draw(next((zone for zone in zones if zone != "restore" or restorable), "retention"), generator)


def check_end(store: Store) -> None:
    """A run that has finished is whole, and has left nothing in this machine's memory."""
    head = read_head(store)
    assert head is not None
    assert head.commits[0].step == STEPS
    for commit in head.commits:
        verify(store, commit)
    folders = RunMemory(store.url).snapshot("", 0).parent
    assert list(folders.parent.glob(f"{folders.name}*")) == [], "shared memory of dead attempts is left behind"


def test_the_example_of_the_docs_runs_and_resumes(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs/examples/plain_loop.py"
    command = [sys.executable, str(example), str(tmp_path), "example"]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    again = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(first) == 61
    assert again == first[-1:], "a finished run has nothing to do, and the same weights"
