"""Pushing the finished model to the Hugging Face Hub. Safe to repeat: the same files make no new commit."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from checkpoints.events import Diary
from trainer.export import PICKLED
from trainer.recipe import Hub

logger = logging.getLogger(__name__)


def push_model(hub: Hub, folder: Path, diary: Diary) -> bool:
    """Push an exported folder; returns whether it is there now.

    A push that can't be done doesn't fail the run: the model is in the bucket, and the log says what is missing.
    """
    import httpx
    from huggingface_hub import HfApi

    if not os.environ.get("HF_TOKEN"):
        logger.warning("no HF_TOKEN: not pushed to %s (the model is in the bucket, in final/)", hub.repo)
        return False
    try:
        api = HfApi()
        api.create_repo(hub.repo, private=hub.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=hub.repo, folder_path=folder, commit_message="notus-launch", ignore_patterns=[PICKLED]
        )
    except (httpx.HTTPError, OSError, ValueError) as error:
        logger.warning("not pushed to %s: %s (the model is in the bucket, in final/)", hub.repo, error)
        return False
    diary.write("pushed", repo=hub.repo, commit=commit.oid)
    logger.info("pushed to %s", hub.repo)
    return True
