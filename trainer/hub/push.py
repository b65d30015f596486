"""Pushes to the Hugging Face Hub. Safe to repeat: the same files make no new commit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from checkpoints.errors import UserError
from checkpoints.run_log.event_kinds import Pushed
from checkpoints.run_log.event_log import Diary
from checkpoints.util.atomic_folder import MARK
from trainer.config.recipe import Hub
from trainer.errors import TrainingFailed

logger = logging.getLogger(__name__)

PICKLED = "training_args.bin"
"""Written by the Trainer; using a model shouldn't require loading a pickle."""
SHARD = "4GB"
"""Maximum size of a file of weights, unless one tensor is larger: a broken connection loses what was sent of a file."""
Kind = Literal["model", "dataset"]
STALE: Mapping[Kind, Sequence[str]] = {
    "model": ("adapter_*", "model*.safetensors*", "config.json", "generation_config.json"),
    "dataset": ("data/*.parquet",),
}
"""Files of an earlier push of another kind or size. Beside merged weights an adapter_config.json makes transformers
load base and adapters, and a model.safetensors takes precedence over shards."""


def push_model(hub: Hub, folder: Path, diary: Diary) -> bool:
    """Push an exported folder; returns whether it was pushed.

    A failed push doesn't fail the run: the model is in the bucket, and the log has the reason.
    """
    if not os.environ.get("HF_TOKEN"):
        logger.warning("no HF_TOKEN: not pushed to %s (the model is in the bucket, in final/)", hub.repo)
        return False
    try:
        commit = push_folder(hub.repo, folder, private=hub.private)
    except TrainingFailed as error:
        logger.warning("%s (the model is in the bucket, in final/)", error.message)
        return False
    diary.write(Pushed(repo=hub.repo, commit=commit))
    logger.info("pushed to %s", hub.repo)
    return True


def check_push(repo: str, kind: Kind = "model") -> None:
    """Check name and token before anything that takes long. Raises `UserError`."""
    if repo.count("/") != 1 or not all(repo.split("/")):
        what = "data set" if kind == "dataset" else kind
        raise UserError(f"--push {repo!r} is not a {what} on the Hub", "give OWNER/NAME")
    if not os.environ.get("HF_TOKEN"):
        raise UserError("--push needs a token for the Hub", "set HF_TOKEN to one that may write")


def push_folder(repo: str, folder: Path, *, private: bool, kind: Kind = "model") -> str:
    """Push a folder, without pickles, in one commit; returns the commit.

    Files from an earlier push that this one doesn't contain (`STALE`) are deleted in the same commit. Safe to repeat:
    what the Hub already has is not sent again.

    Raises `TrainingFailed`.
    """
    import httpx
    from huggingface_hub import HfApi

    of_kind = {} if kind == "model" else {"repo_type": kind}
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True, **of_kind)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="notus-launch",
            ignore_patterns=[PICKLED, MARK],
            delete_patterns=list(STALE[kind]),
            **of_kind,
        )
    except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:  # the last: a large file
        raise TrainingFailed(
            f"not pushed to {repo}: {error}", f"it is in {folder}: the same command tries to push it again"
        ) from error
    return str(commit.oid)
