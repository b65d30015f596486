"""One rank of an attempt, started by torchrun: resume or start, train, finish.

torch is imported in `_run`, after the checkpoint's download has begun.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from checkpoints.commit.claimed_store import open_claimed_run
from checkpoints.errors import Fenced, NotusError, UserError
from checkpoints.snapshot.shared_memory import RunMemory
from trainer.build_cache.deepspeed_ops import OpsCache, machine_key
from trainer.build_cache.ops_build_folder import KeptOperators, compile_apart, kept_root
from trainer.build_cache.signed_artifacts import signing_key
from trainer.checkpointing.prefetch import Prefetch
from trainer.config.fingerprint import base_revision, saved_fingerprint
from trainer.config.global_batch import batch_of_run
from trainer.config.offload import settle_offload
from trainer.config.recipe import load_recipe
from trainer.config.run_pins import read_pins
from trainer.data.token_cache import TokenCache
from trainer.errors import MachineFault
from trainer.metrics.past_rows import History
from trainer.metrics.tracker_setup import hide_wandb, usable_trackers
from trainer.runtime.attempt_dir import Outcome, Progress, Scratch
from trainer.runtime.process_tree import die_with_parent
from trainer.runtime.startup_phases import PhaseReport, modules
from trainer.runtime.stop_flag import StopRequest
from trainer.training.reference_log_probs import ChunkPrefetch

logger = logging.getLogger("trainer")


def main() -> None:
    """Run this rank and write its outcome to the scratch folder; the exit code is only for torchrun."""
    rank = int(os.environ["RANK"])
    die_with_parent(signal.SIGKILL)  # a rank that outlives its attempt would hold the GPUs
    scratch = Scratch(Path(os.environ["NOTUS_SCRATCH"]))
    stop = StopRequest(scratch.stop)
    stop.listen()
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s r{rank} %(levelname)s %(message)s",
        stream=sys.stdout,
        force=True,
    )
    # DeepSpeed 0.19.8 calls these at every step; the warnings would fill the run's log.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    try:
        outcome = _run(rank, scratch, stop)
    except Fenced as error:
        outcome = Outcome(kind="fenced", message=error.message, hint=error.hint)
    except MachineFault as error:
        outcome = Outcome(kind="failed", message=error.message, hint=error.hint)
    except UserError as error:
        outcome = Outcome(kind="user_error", message=error.message, hint=error.hint)
    except NotusError as error:
        logger.exception("attempt failed")
        outcome = Outcome(kind="failed", message=error.message, hint=error.hint)
    except Exception as error:
        logger.exception("attempt failed")
        outcome = Outcome(kind="failed", message=f"{type(error).__name__}: {error}")
    scratch.write_outcome(rank, outcome)
    if outcome.message:
        logger.error("%s", outcome.message)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after a failure on one rank, tearing down process groups waits for the others.
    os._exit(0 if outcome.kind in ("finished", "preempted") else 1)


def _run(rank: int, scratch: Scratch, stop: StopRequest) -> Outcome:
    recipe = load_recipe(os.environ["NOTUS_RECIPE"])
    run = os.environ["NOTUS_RUN"]
    store = open_claimed_run(os.environ["NOTUS_BUCKET"], run)
    head = scratch.read_head()
    if head is None:
        raise UserError("this rank was started without a claim on the run", "run `notus-train RECIPE` instead")
    shared = rank if recipe.zero else 0  # under DDP rank 0 saves the weights for all
    world_size = int(os.environ["WORLD_SIZE"])
    predecessor = os.environ.get("NOTUS_PREDECESSOR", "")

    def fetch(of_rank: int) -> Prefetch:
        return Prefetch(store, head, of_rank, world_size, RunMemory(store.url).left_by(predecessor, of_rank))

    prefetch = fetch(rank)
    shared_prefetch = fetch(shared) if shared != rank else prefetch
    tokens = TokenCache(store, scratch.work / "tokens")
    if int(os.environ["LOCAL_RANK"]) == 0:
        tokens.prefetch()
    kept = KeptOperators(kept_root(os.environ), machine_key())
    compile_apart(scratch.work / "compiled")
    ops = OpsCache(store, scratch.work / f"ops-r{rank}", signing_key(os.environ) if recipe.zero else None, kept)
    ops.prefetch()
    log_probs = ChunkPrefetch(store) if rank == 0 and recipe.dpo.reference == "precomputed" else None
    saved = saved_fingerprint(store, head)
    pinned = saved or read_pins(store)
    batch = batch_of_run(pinned, recipe, world_size)
    report = PhaseReport(scratch, lambda: store.bytes_read) if rank == 0 else None
    if report is not None:
        report.begin(Progress(phase="importing"), modules)
    # Only the first rank reports; the other ranks' callbacks would do nothing.
    trackers = usable_trackers(recipe, os.environ) if rank == 0 else []
    history = History(store) if trackers and head.commits else None
    hide_wandb()
    from trainer.checkpointing.rank_checkpointer import Claim
    from trainer.devices.device import smallest_gpu_gib
    from trainer.training.attempt import run_attempt
    from trainer.training.context import AttemptContext

    recipe, why = settle_offload(recipe, gpu_gib=smallest_gpu_gib(), count=world_size, saved=saved)
    if why and recipe.zero is not None:
        chosen = recipe.zero.model_dump(include={"offload_optimizer", "offload_parameters"})
        logger.info("offload %s (%s)", chosen, why)
    context = AttemptContext(
        recipe=recipe,
        batch=batch,
        revision=base_revision(pinned.get("base") if pinned else None, recipe.model.revision),
        claim=Claim(run=run, store=store, head=head, scratch=scratch, stop=stop),
        tokens=tokens,
        ops=ops,
        report=report,
        trackers=trackers,
        history=history,
        log_probs=log_probs,
    )
    return run_attempt(context, prefetch, shared_prefetch)


if __name__ == "__main__":
    main()
