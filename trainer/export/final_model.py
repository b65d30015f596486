"""The finished model as a Hugging Face folder in the bucket."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from checkpoints.commit.folder_manifest import FINAL, MODEL, put_files, read_list
from checkpoints.errors import CorruptCheckpoint, NotusError
from checkpoints.run_log.event_kinds import Exported
from checkpoints.run_log.event_log import Diary
from checkpoints.storage.base import Store
from checkpoints.util.atomic_folder import CARD
from trainer.config.fingerprint import Base
from trainer.devices.collectives import from_rank_0
from trainer.export.model_card import card_at_the_end
from trainer.hub.push import PICKLED

if TYPE_CHECKING:
    from trainer.method import MethodTrainer

logger = logging.getLogger(__name__)


def export_model(
    trainer: MethodTrainer, tokenizer: Any, store: Store, folder: Path, diary: Diary, *, base: Base, attempt: int
) -> None:
    """Gather the weights (LoRA: the adapter) on rank 0 and put them, tokenizer, config and card into `final/`.

    Collective. Safe to repeat: if an attempt dies during the export, the next one exports again. The event `exported`
    comes last; like `final.json` it has the hash of every file and the `base` model.
    """
    trainer.save_model(str(folder))
    error: NotusError | None = None
    if dist.get_rank() == 0:
        tokenizer.save_pretrained(folder)
        try:
            (folder / CARD).write_text(
                card_at_the_end(store, attempt, base), encoding="utf-8"
            )  # replaces peft's empty template
            paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != PICKLED]
            listed = put_files(store, FINAL, paths, dict(base))
            diary.write(Exported(files=listed.files, base=dict(base)))
            logger.info("exported %d files to %s/%s", len(paths), store.url, FINAL)
        except NotusError as caught:
            error = caught
    if (failure := from_rank_0(error)) is not None:
        raise failure


def keep_model_files(trainer: MethodTrainer, tokenizer: Any, store: Store, folder: Path) -> None:
    """Write config and tokenizer to `model/`, with their list: what a checkpoint's weights need to be a model."""
    tokenizer.save_pretrained(folder)
    trainer.model.config.save_pretrained(folder)
    if trainer.model.generation_config is not None:
        trainer.model.generation_config.save_pretrained(folder)
    put_files(store, MODEL, sorted(folder.iterdir()))


def model_files_are_kept(store: Store) -> bool:
    """Are they all there? An older run has no list. Damaged or missing files are rewritten."""
    try:
        listed = read_list(store, MODEL)
    except CorruptCheckpoint as error:
        logger.warning("%s: rewriting it", error.message)
        return False
    there = {entry.key for entry in store.list(MODEL)}
    return listed is not None and all(f"{MODEL}/{name}" in there for name in listed.files)
