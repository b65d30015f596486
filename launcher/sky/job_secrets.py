"""The secrets of a run, from the environment of whoever launches it. Values go to SkyPilot and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import RequestError
from launcher.planning.plan import Rung
from launcher.sky.render import GCS_KEY, needed_secrets
from trainer.config.recipe import Recipe


def collect(recipe: Recipe, bucket: str, rungs: Sequence[Rung], environment: Mapping[str, str]) -> dict[str, str]:
    """Name -> value of everything that the machines need; raises `RequestError` for what is missing.

    HF_TOKEN is left out where there is none: public models need no token. A push to the Hub does.
    """
    found: dict[str, str] = {}
    for name in needed_secrets(recipe, bucket, rungs):
        if name.startswith("AWS_"):
            continue
        if name == GCS_KEY:
            found[name] = _gcs_key(environment)
        elif environment.get(name):
            found[name] = environment[name]
        elif name == "WANDB_API_KEY":
            raise RequestError(
                "WANDB_API_KEY is not set, and the recipe tracks with wandb",
                "export it, or take wandb out of `tracking`",
            )
        elif name == "HF_TOKEN" and recipe.hub is not None:
            raise RequestError(
                "HF_TOKEN is not set, and the recipe pushes to the Hub", "export it, or take `hub` out of the recipe"
            )
    return found | _aws_keys() if bucket.startswith("s3://") else found


def _aws_keys() -> dict[str, str]:
    """By boto3's rules: the environment, a profile, SSO, ..."""
    import boto3

    credentials = boto3.Session().get_credentials()
    if credentials is None:
        raise RequestError(
            "no AWS credentials for the bucket",
            "export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or set up a profile",
        )
    frozen = credentials.get_frozen_credentials()
    if frozen.token:
        raise RequestError(
            "the AWS credentials here are temporary (a session token): the machines would lose the bucket in mid-run",
            "use the keys of a user that may only read, write, list and delete in this bucket",
        )
    return {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}


def _gcs_key(environment: Mapping[str, str]) -> str:
    path = environment.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    try:
        text = Path(path).read_text() if path and Path(path).is_file() else ""
        if text and json.loads(text).get("type") == "service_account":
            return text
    except (OSError, ValueError):
        pass
    raise RequestError(
        "machines outside of GCP need a service account's key to open a gs:// bucket",
        "set GOOGLE_APPLICATION_CREDENTIALS to its JSON file, or use --cloud gcp, or an s3:// bucket",
    )
