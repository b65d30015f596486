"""The task files in `sky_tasks/` for users of plain SkyPilot, rendered from the recipes so that they stay current.

`python -m launcher.sky.example_tasks FOLDER` writes them; a test compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from checkpoints.storage.gcs import KEY as GCS_KEY
from launcher.planning.plan import Candidate
from launcher.sky.render import needed_secrets, task_config, to_yaml
from trainer.config.recipe import load_recipe

RECIPES = ("notus-7b-dpo", "notus-7b-dpo-lora")

LADDER = (
    Candidate(cloud="gcp", gpus="A100-80GB:8", spot=True),
    Candidate(cloud="gcp", gpus="A100:8", spot=True),
    Candidate(cloud="gcp", gpus="A100:8", spot=False),
    Candidate(cloud="lambda", gpus="A100:8", spot=False),
)
"""Spot first, larger cards before smaller ones; on demand if there is no spot. `notus-launch --dry-run` orders by price
and deadline instead."""


def shipped_tasks() -> dict[str, str]:
    """File name -> text."""
    return {f"{name}.yaml": _task(name) for name in RECIPES}


def _task(name: str) -> str:
    recipe = load_recipe(name)
    secrets = " ".join(f"--secret {secret}" for secret in needed_secrets(recipe, None, LADDER))
    header = (
        f"# Written by `make sky-tasks` from the recipe {name}; edit the recipe or launcher/sky/render.py instead.\n"
        f"# From the root of a checkout (the working tree is what runs on the VM):\n"
        f"#   sky jobs launch sky_tasks/{name}.yaml --env NOTUS_BUCKET=gs://my-bucket/notus --env NOTUS_RUN=my-run \\\n"
        f"#     {secrets}\n"
        f"# Deadline, budget and the way back to spot need the NOTUS strategy (`notus-launch doctor --fix`);\n"
        f"# then write `strategy: NOTUS` below and give --env NOTUS_DEADLINE=... --env NOTUS_BUDGET_USD=...\n"
        f"# Launching again with the same NOTUS_RUN goes on where that run was. For a gs:// bucket write {GCS_KEY}\n"
        f"# (a service account's key, the content of its file) in the place of the AWS keys in `secrets:`.\n"
    )
    return to_yaml(task_config(recipe, LADDER, run=name, bucket=None), header)


def main() -> None:
    """Write the files to the given folder."""
    folder = Path(sys.argv[1])
    for name, text in shipped_tasks().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
