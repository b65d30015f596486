"""A numpy loop over `checkpoints`, to be killed: prints a digest of its state at each step."""

from __future__ import annotations

import sys

import numpy as np
import xxhash

from checkpoints import Checkpointer

STEPS = 240
SAVE_EVERY = 7


def main(bucket: str, run: str, gone: str) -> None:
    generator = np.random.default_rng(1)
    weights = [np.zeros(300_000, dtype=np.float32) for _ in range(4)]
    with Checkpointer(bucket, run, wait_s=0.0, predecessor_gone=gone, keep=2) as checkpoints:
        if (saved := checkpoints.restore()) is not None:
            generator.bit_generator.state = saved["generator"]
            weights = [np.array(array) for array in saved["weights"]]
        for step in range(checkpoints.step + 1, STEPS + 1):
            gradient = generator.standard_normal(300_000, dtype=np.float32)
            checkpoints.wait_copied()
            for array in weights:
                array += gradient
                gradient = np.roll(gradient, step)
            digest = xxhash.xxh3_64_hexdigest(np.concatenate(weights).tobytes())
            print(step, digest, flush=True)  # noqa: T201  # the test reads it
            if step % SAVE_EVERY == 0 or step == STEPS:
                state = {"weights": weights, "generator": generator.bit_generator.state}
                checkpoints.save(step, state, wait=step == STEPS)


if __name__ == "__main__":
    main(*sys.argv[1:])
