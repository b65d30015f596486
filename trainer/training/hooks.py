"""What an attempt does at each event of its training: checks, saves, the diary, the trackers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

import torch.distributed as dist
from transformers import TrainerState

from checkpoints.errors import NotusError, UserError
from checkpoints.run_log.event_kinds import Evaluated, Training
from trainer.checkpointing.rank_checkpointer import RankCheckpointer, SavedState
from trainer.checkpointing.save_callback import SaveDecision
from trainer.checkpointing.save_policy import what_is_left
from trainer.metrics.past_rows import Row, numbers
from trainer.metrics.tracker_setup import tracker_links
from trainer.metrics.trackers import Curve, Curves, TensorBoardCurve, WandbCurve, first_step_shown
from trainer.runtime.attempt_dir import Phase, Progress
from trainer.training.context import AttemptContext
from trainer.training.first_loss_check import wrong_first_loss
from trainer.training.optimizer_check import check_optimizer

logger = logging.getLogger(__name__)


class AttemptHooks:
    """Implements `trainer.method.TrainingHooks` for one rank."""

    def __init__(
        self, context: AttemptContext, state: SavedState, checkpointer: RankCheckpointer, decision: SaveDecision
    ) -> None:
        self._context = context
        self._recipe = context.recipe
        self._trainer, self._record = state.trainer, state.record
        self._fingerprint = state.fingerprint
        self._checkpointer = checkpointer
        self._decision = decision
        self._curves = Curves({})
        self._first_step = True

    def announce(self, phase: Phase) -> None:
        if self._context.report is None:
            return
        state = self._trainer.state
        progress = Progress(
            phase=phase,
            step=state.global_step,
            total_steps=state.max_steps,
            loss=self._record.loss,
            save_s=self._checkpointer.saver.local.save_s,
        )
        self._context.report.begin(progress)

    def on_train_begin(self) -> None:
        optimizer = check_optimizer(self._trainer, self._recipe)
        optimizer.register_step_pre_hook(lambda *args: self._checkpointer.saver.local.wait_copied())
        self._checkpointer.finish_restore()
        self._open_curves()
        self.announce("training")

    def on_step_begin(self) -> None:
        self._record.begin_step()

    def on_step_end(self, state: TrainerState) -> None:
        if fault := self._record.end_step(state):
            self._refuse(fault, state.global_step)
        if self._first_step:
            self._first_step = False
            self._after_first_step(state)
        self.announce("training")

    def more_figures(self) -> dict[str, float]:
        return self._record.more_figures()

    def on_logged(self, logs: dict[str, Any]) -> None:
        if dist.get_rank() == 0:
            self._curves.show(self._record.logged(Row(self._trainer.state.global_step, False, numbers(logs))))

    def on_evaluated(self, state: TrainerState, metrics: dict[str, float]) -> None:
        if dist.get_rank() == 0:
            self._record_evaluation(Row(state.global_step, True, numbers(metrics)))
        if (metric := self._recipe.saves.keep_best) is not None:
            saver = self._checkpointer.saver
            saver.settle(tolerant=True)  # the checkpoint has to be in HEAD to get its score
            saver.score(state.global_step, metric, metrics)

    def save(self) -> None:
        self._checkpointer.save(self._decision.reason, evaluation_due=self._decision.evaluation_due)

    def on_train_end(self) -> None:
        """Finish the save in flight, and give the trackers the rows that they still lack. Collective."""
        saver = self._checkpointer.saver
        saver.settle()
        saver.local.close()
        self._curves.show(self._record.flush())
        self._curves.close()

    # --- parts --------------------------------------------------------------------------------------

    def _open_curves(self) -> None:
        """Open the trackers after the restore: only then is it known which rows they lack."""
        context, step = self._context, self._trainer.state.global_step
        due = self._trainer.args.eval_on_start
        past = context.history.rows(step, evaluation_due=due) if context.history else []
        config = {"recipe": self._recipe.model_dump(mode="json"), "fingerprint": self._fingerprint}
        openers: dict[str, Callable[[], Curve]] = {
            "wandb": lambda: WandbCurve(context.claim.run, config),
            "tensorboard": lambda: TensorBoardCurve(context.claim.scratch.tensorboard, first_step_shown(past, step)),
        }
        self._curves = Curves({name: openers[name] for name in context.trackers})
        self._curves.show(past)

    def _after_first_step(self, state: TrainerState) -> None:
        """After this attempt's first step: free what it was restored from, now that the optimizer has its state."""
        self._check_reference(state.global_step)
        self._checkpointer.release_restored()
        self._checkpointer.prepare(evaluation_due=self._decision.evaluation_due)
        if dist.get_rank() == 0:
            links = tuple(tracker_links())
            started = Training(step=state.global_step, total_steps=state.max_steps, links=links)
            self._context.claim.diary.try_write(started)
            self._context.ops.publish()

    def _check_reference(self, step: int) -> None:
        """Check the run's very first step, before it is saved. Raises `UserError`."""
        if step > 1 or self._record.loss is None or self._trainer.aux_loss_enabled:
            return
        if wrong := wrong_first_loss(self._recipe.dpo, self._record.loss):
            raise UserError(
                f"{wrong}: the reference isn't the base model",
                "start a new run with another --name; if it happens again, please report it",
            )

    def _refuse(self, fault: str, step: int) -> NoReturn:
        """Stop before this step is saved. Raises `UserError`: the next attempt would compute the same."""
        left = what_is_left((commit.step for commit in self._checkpointer.commits()), step)
        export = "" if self._recipe.lora else "; to export a checkpoint as a model: notus-ckpt export --step"
        raise UserError(
            f"{fault} at step {step}: training stops, {left}",
            f"lower training.learning_rate (now {self._recipe.training.learning_rate:g}) or check the data, and "
            f"start a new run{export}",
        )

    def _record_evaluation(self, row: Row) -> None:
        """Write an evaluation to the diary before the trackers get it."""
        try:
            self._context.claim.diary.write(Evaluated(step=row.step, metrics=row.values))
        except NotusError as error:
            logger.warning("could not record the evaluation of step %d: %s", row.step, error.message)
        else:
            self._curves.show(self._record.logged(row))
