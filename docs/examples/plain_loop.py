"""A plain PyTorch loop that can be killed at any moment and ends bit for bit as if it never was.

    python docs/examples/plain_loop.py FOLDER RUN

Kill it (kill -9), start it again with the same arguments, as often as you like: the last line it prints stays the same.
"""

import sys

import torch
from torch import nn

from checkpoints import Checkpointer

STEPS = 60
SAVE_EVERY = 3


def main(bucket: str, run: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(64, 256), nn.Dropout(0.1), nn.ReLU(), nn.Linear(256, 1))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    data = torch.randn(512, 64)
    target = data.sum(dim=1, keepdim=True).sin()

    with Checkpointer(bucket, run) as checkpoints:
        saved = checkpoints.restore()
        if saved is not None:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            torch.set_rng_state(saved["rng"]["torch"].clone())
        for step in range(checkpoints.step + 1, STEPS + 1):
            batch = torch.randint(0, len(data), (32,))  # from the generator that is part of the state
            loss = nn.functional.mse_loss(model(data[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            checkpoints.wait_copied()
            optimizer.step()
            print(f"step {step} loss {loss.item().hex()}", flush=True)
            if step % SAVE_EVERY == 0 or step == STEPS:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "rng": {"torch": torch.get_rng_state()},
                }
                checkpoints.save(step, state, wait=step == STEPS)
    print("sum of weights:", sum(p.double().sum().item() for p in model.parameters()).hex())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
