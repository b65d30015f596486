"""Check that Weights & Biases accepts the key that the machines will have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec

from launcher.check.answers import Answer, Question
from launcher.errors import RequestError
from launcher.findings import Finding
from trainer.config.recipe import Recipe

WANDB = "Weights & Biases"
SERVER = "https://api.wandb.ai"
"""WANDB_BASE_URL names another one."""
REQUEST_S = 10.0
QUERY = "query Viewer { viewer { username } }"


def questions(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> list[Question]:
    """The query; none if the recipe doesn't track there, or only offline."""
    if "wandb" not in recipe.tracking or environment.get("WANDB_MODE") in ("offline", "disabled"):
        return []
    key = environment.get("WANDB_API_KEY", "").strip()
    if not key or find_spec("httpx") is None:
        return []
    server = environment.get("WANDB_BASE_URL", "").strip() or SERVER
    return [Question(WANDB, partial(about_key, key, server))]


def about_key(key: str, server: str) -> Answer:
    """Check the key. Raises `RequestError` if the server rejects it."""
    import httpx

    answer = httpx.post(f"{server.rstrip('/')}/graphql", auth=("api", key), json={"query": QUERY}, timeout=REQUEST_S)
    viewer = ((answer.json().get("data") or {}).get("viewer") or {}) if answer.status_code == 200 else {}
    if answer.status_code in (401, 403) or (answer.status_code == 200 and not viewer):
        raise RequestError(
            f"{server} rejects WANDB_API_KEY", "set it to a key of your account, or remove wandb from `tracking`"
        )
    answer.raise_for_status()
    return Answer(Finding(WANDB, "ok", f"accepts the key of {viewer.get('username')}"))
