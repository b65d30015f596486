"""The finished model as a Hugging Face folder in the bucket."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from checkpoints.errors import NotusError
from checkpoints.event_kinds import Exported
from checkpoints.events import Diary
from checkpoints.files import hash_file
from checkpoints.names import check_key
from checkpoints.pull import MODEL_FOLDER
from checkpoints.store import Store
from trainer.card import card_at_the_end
from trainer.collective import from_rank_0
from trainer.fingerprint import Base
from trainer.folders import CARD
from trainer.hub import PICKLED

if TYPE_CHECKING:
    from trainer.dpo import NotusDPOTrainer

logger = logging.getLogger(__name__)

FINAL = "final"


def export_model(
    trainer: NotusDPOTrainer, tokenizer: Any, store: Store, folder: Path, diary: Diary, *, base: Base, attempt: int
) -> None:
    """Gather the weights (LoRA: the adapter) on rank 0 and put them, tokenizer, config and card into `final/`.

    Collective. Safe to repeat: an attempt that died in the export is followed by one that exports again. The event
    `exported` names every file with its hash and what `base` model it came from, and comes last.
    """
    trainer.save_model(str(folder))
    error: NotusError | None = None
    if dist.get_rank() == 0:
        tokenizer.save_pretrained(folder)
        try:
            (folder / CARD).write_text(
                card_at_the_end(store, attempt, base), encoding="utf-8"
            )  # peft's is an empty form
            files = {
                path.name: _put(store, path)
                for path in sorted(folder.iterdir())
                if path.is_file() and path.name != PICKLED
            }
            diary.write(Exported(files=files, base=dict(base)))
            logger.info("exported %d files to %s/%s", len(files), store.url, FINAL)
        except NotusError as caught:
            error = caught
    if (failure := from_rank_0(error)) is not None:
        raise failure


def keep_model_files(trainer: NotusDPOTrainer, tokenizer: Any, store: Store, folder: Path) -> None:
    """Config and tokenizer into `model/`, once a run: what a checkpoint's weights need to become a model."""
    tokenizer.save_pretrained(folder)
    trainer.model.config.save_pretrained(folder)
    if trainer.model.generation_config is not None:
        trainer.model.generation_config.save_pretrained(folder)
    for path in folder.iterdir():
        store.put_file(f"{MODEL_FOLDER}/{path.name}", path)


def _put(store: Store, path: Path) -> str:
    key = check_key(f"{FINAL}/{path.name}")
    store.put_file(key, path)
    return hash_file(path)
