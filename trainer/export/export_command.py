"""`notus-train export RUN`: fetch the finished model from the bucket, and optionally merge and push it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from checkpoints.commit.folder_manifest import FINAL, fetch_files, read_list
from checkpoints.errors import UserError
from checkpoints.run_log.event_kinds import Exported
from checkpoints.run_log.event_log import Event, of_kind, read_events
from checkpoints.run_log.run_record import RunRecord, open_run
from checkpoints.storage.backend import SHORT
from checkpoints.storage.base import Store
from checkpoints.util.atomic_folder import CARD, is_whole, whole_folder, work_folder
from checkpoints.util.command_line import run_app
from checkpoints.util.keys import check_run_name
from trainer.config.fingerprint import Base, base_change, base_revision
from trainer.config.run_pins import run_record
from trainer.errors import TrainingFailed
from trainer.export.model_card import model_card
from trainer.hub.load_errors import translated_errors
from trainer.hub.push import SHARD, check_push, push_folder
from trainer.model.base_identity import identify_base

logger = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

ADAPTER = "adapter_model.safetensors"
TOLERANCE = 1e-3
"""Share of the logits' standard deviation, in float32: a merge is off by about 1e-5, other weights by about 1."""
PROBE_TOKENS = 64
LEAST_KEPT = 0.9
"""Share of the training's change: if less is left after rounding, a merged model is stored in float32."""
MOST_NOISE = 0.5
"""The same for the noise that rounding adds."""


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the model.")],
    bucket: Annotated[str, typer.Option(help=f"{SHORT} or a folder.", envvar="NOTUS_BUCKET")],
    merge: Annotated[bool, typer.Option("--merge", help="LoRA: merge the adapters into the base model.")] = False,
    push: Annotated[str | None, typer.Option(help="Also push it to this model on the Hub: OWNER/NAME.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Push as public; the default is private.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Fetch a run's finished model as a Hugging Face folder with a card. Every file is checked against its hash."""
    if push is not None:
        check_push(push)
    store = open_run(bucket, check_run_name(run))
    finished = read_finished(store, run, merge=merge)
    made = {"run": run, "merged": merge, "files": finished.files}
    if push is None or not is_whole(out, made):  # else only its push failed
        with whole_folder(out.absolute(), made) as folder:
            release(store, finished, folder, merge=merge)
    sys.stderr.write(f"notus-train: the {'merged ' if merge else ''}model of {run} is in {out}\n")
    if push is not None:
        push_folder(push, out, private=not public)
        sys.stderr.write(f"notus-train: pushed to {push}\n")


class Finished(NamedTuple):
    """A run whose model is in `final/`."""

    record: RunRecord
    events: list[Event]
    files: dict[str, str]
    """xxh3-128 of the model's files, by name."""
    base: Base | None
    """None for an older run."""


def read_finished(store: Store, run: str, *, merge: bool) -> Finished:
    """Read a run's record of its model. Raises `UserError` if there is none, or nothing to merge."""
    record = run_record(store)
    events = read_events(store)
    model = _exported(store, events)
    if record is None or model is None:
        raise UserError(
            f"run {run} in {store.url} has no finished model",
            "let it finish first, or export a checkpoint: notus-ckpt export",
        )
    if merge and ADAPTER not in model.files:
        raise UserError(f"run {run} trained all weights: there are no adapters to merge", "leave out --merge")
    return Finished(record, events, model.files, model.base)


def release(store: Store, finished: Finished, folder: Path, *, merge: bool) -> None:
    """Fetch the model, merge it if requested, and write the card."""
    if not merge:
        _fetch(store, finished.files, folder)
    else:
        with work_folder(folder) as work:
            adapter = work / "adapter"
            adapter.mkdir()
            _fetch(store, finished.files, adapter)
            _merge(finished.record.recipe, finished.base, adapter, folder, work)
    card = model_card(finished.record, finished.events, finished.base, merged=merge)
    (folder / CARD).write_text(card, encoding="utf-8")


def _exported(store: Store, events: list[Event]) -> Exported | None:
    """The `exported` event, or if it is damaged or lost, the same from the list of files."""
    if exported := [payload for _, payload in of_kind(events, Exported)]:
        return exported[-1]
    listed = read_list(store, FINAL)
    return Exported(files=listed.files, base=listed.base or None) if listed else None


def _fetch(store: Store, files: dict[str, str], folder: Path) -> None:
    """Fetch each file of the model and check its hash; raises `CorruptCheckpoint`."""
    fetch_files(store, FINAL, files, folder)


def _merge(recipe: dict[str, Any], base_of_run: Base | None, adapter: Path, folder: Path, work: Path) -> None:
    """Merge base model and adapters into one model, if its logits match.

    From the Hub, the commit of the base model that the run was trained on is used, even if there are later ones.

    Merged and compared in float32, 4 bytes per parameter (28 GB for 7B): if rounded to bf16 first, the two differ by a
    quarter of the logits' spread for strong adapters, which could hide a wrong merge. Then rounded to the recipe's
    `model.dtype` (`auto`: the base model's) and compared again: at DPO's learning rates most of the training's change
    may be smaller than the last bit of a bf16 weight.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from trainer.model.base_files import POSITIONS
    from trainer.model.builtin_models import make_base_model
    from trainer.model.generation_config import loadable_generation_config, repair_generation_config

    model = recipe["model"]
    name = make_base_model(model["name"], work)
    revision = base_revision(base_of_run, model.get("revision"))
    check_base(base_of_run, identify_base(name, revision))
    with translated_errors("the base model", name, "model.name"), loadable_generation_config(name):
        stored = AutoConfig.from_pretrained(name, revision=revision).dtype
        base = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=torch.float32)
    if model["dtype"] != "auto":
        stored = getattr(torch, model["dtype"])
    both = PeftModel.from_pretrained(base, adapter)
    both.eval()
    generator = torch.Generator().manual_seed(0)
    length = min([PROBE_TOKENS, *(most for key in POSITIONS if (most := getattr(base.config, key, 0)))])
    ids = torch.randint(0, base.config.vocab_size, (1, length), generator=generator)
    with torch.no_grad():
        with both.disable_adapter():
            untrained = both(input_ids=ids).logits
        expected = both(input_ids=ids).logits
        merged = both.merge_and_unload()
        check_logits(expected, merged(input_ids=ids).logits)
        with rounded(merged, stored):
            found = merged(input_ids=ids).logits
            kept, noise = kept_share(untrained, expected, found), noise_share(untrained, expected, found)
    if kept < LEAST_KEPT or noise > MOST_NOISE:
        message = (
            f"rounded to {stored} the merged model keeps {min(kept, 1.0):.0%} of what was trained, and is off by "
            f"{noise:.0%} of it: stored in float32"
        )
        logger.warning("%s", message)
        stored = torch.float32
    else:
        logger.info("rounded to %s the merged model keeps %.0f %% of what was trained", stored, 100 * min(kept, 1.0))
    repair_generation_config(merged, name)
    merged.to(stored).save_pretrained(folder, max_shard_size=SHARD)
    AutoTokenizer.from_pretrained(adapter).save_pretrained(folder)


def check_base(of_run: Base | None, found: Base) -> None:
    """Raises `UserError` if the base model isn't the one that the run recorded. Older runs recorded none."""
    if of_run is None:
        logger.warning("this run has no record of its base model: using today's")
    if changed := base_change(of_run, found):
        raise UserError(
            f"the adapters were trained on another base model: {changed}",
            "restore the one that the run was trained on; for the next run pin model.revision",
        )


@contextlib.contextmanager
def rounded(model: Any, dtype: Any) -> Iterator[None]:
    """Inside this context, the model computes with weights rounded to `dtype`.

    One module's weights are rounded at a time, to avoid a copy of all weights.
    """
    hooks = []
    for module in model.modules():
        own: list[Any] = list(module.parameters(recurse=False))
        exact: list[Any] = []

        def before(_: Any, __: Any, own: list[Any] = own, exact: list[Any] = exact) -> None:
            exact.extend(parameter.data for parameter in own)
            for parameter in own:
                parameter.data = parameter.data.to(dtype).to(parameter.dtype)

        def after(_: Any, __: Any, ___: Any, own: list[Any] = own, exact: list[Any] = exact) -> None:
            for parameter in own:
                parameter.data = exact.pop(0)

        if own:
            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def kept_share(untrained: Any, trained: Any, rounded: Any) -> float:
    """The share of training's change of the logits that is left after rounding, as a projection on that change.

    1 = all of it; an untrained model keeps everything.
    """
    change = (trained - untrained).flatten().double()
    size = float(change @ change)
    return float((rounded - untrained).flatten().double() @ change) / size if size > 0 else 1.0


def noise_share(untrained: Any, trained: Any, rounded: Any) -> float:
    """The error of rounding as a share of training's change: noise that the projection doesn't show."""
    size = float((trained - untrained).double().norm())
    return float((rounded - trained).double().norm()) / size if size > 0 else 0.0


def check_logits(expected: Any, found: Any) -> None:
    """Raises `TrainingFailed` if the merged model's logits differ from those of base and adapters."""
    difference = float((expected - found).abs().max() / expected.std())
    logger.info("merged logits differ by at most %.2g of their standard deviation", difference)
    if not difference <= TOLERANCE:
        raise TrainingFailed(
            f"the merged model differs from base and adapters by {difference:.2g} of the logits' spread "
            f"(at most {TOLERANCE:g} is rounding)",
            "use base and adapters unmerged, and please report it",
        )


if __name__ == "__main__":
    run_app(app, "notus-train export")
