"""The secrets of a run, from the environment of whoever launches it. Values go to SkyPilot and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from checkpoints.storage.backend import backend_of
from launcher.errors import RequestError
from launcher.planning.plan import Candidate
from launcher.sky.render import clouds_of, needed_secrets
from trainer.config.recipe import Recipe


def collect(
    recipe: Recipe, bucket: str, candidates: Sequence[Candidate], environment: Mapping[str, str]
) -> dict[str, str]:
    """Name -> value of everything that the machines need; raises `RequestError` for what is missing.

    HF_TOKEN is left out where there is none: public models need no token. A push to the Hub does.
    """
    found: dict[str, str] = {}
    backend = backend_of(bucket)
    of_bucket = backend.secret_names(clouds_of(candidates)) if backend else ()
    for name in needed_secrets(recipe, bucket, candidates):
        if name in of_bucket:
            continue
        if environment.get(name):
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
    return found | backend.secrets(environment) if backend and of_bucket else found
