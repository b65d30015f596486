"""The secrets of a run, from the launching user's environment. Values go to SkyPilot and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from checkpoints.storage.backend import backend_of
from launcher.errors import RequestError
from launcher.planning.plan import Candidate
from launcher.sky.render import clouds_of, needed_secrets
from trainer.config.recipe import Recipe


def collect_secrets(
    recipe: Recipe, bucket: str, candidates: Sequence[Candidate], environment: Mapping[str, str]
) -> dict[str, str]:
    """Name -> value of all secrets that the machines need; raises `RequestError` if one is missing.

    HF_TOKEN is optional, because public models need no token, except for a push to the Hub.
    """
    secrets: dict[str, str] = {}
    backend = backend_of(bucket)
    of_bucket = backend.secret_names(clouds_of(candidates)) if backend else ()
    for name in needed_secrets(recipe, bucket, candidates):
        if name in of_bucket:
            continue
        if environment.get(name):
            secrets[name] = environment[name]
        elif name == "WANDB_API_KEY":
            raise RequestError(
                "WANDB_API_KEY is not set, but the recipe tracks with wandb",
                "export it, or remove wandb from `tracking`",
            )
        elif name == "HF_TOKEN" and recipe.hub is not None:
            raise RequestError(
                "HF_TOKEN is not set, but the recipe pushes to the Hub", "export it, or remove `hub` from the recipe"
            )
    return secrets | backend.secrets(environment) if backend and of_bucket else secrets
