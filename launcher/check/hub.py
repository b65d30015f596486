"""Check a recipe's model, data and push on the Hugging Face Hub, with the token that the machines will have.

That is HF_TOKEN in the environment: a login on this machine's disk is not sent, so it only counts for local runs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from launcher.check.answers import Answer, Question
from launcher.errors import RequestError
from launcher.findings import Finding
from trainer.config.recipe import BUILTIN, Hub, Recipe, Source
from trainer.data.preference_pairs import find_columns, local_path
from trainer.model.base_files import CONFIG, check_config

MODEL, DATA, PUSH = "model on the Hub", "data on the Hub", "push to the Hub"
REQUEST_S = 10.0
Kind = Literal["model", "dataset"]
Token = str | bool | None
"""A token as the Hub's client accepts it."""
WORDS: Mapping[Kind, tuple[str, str]] = {"model": ("model", "model.name"), "dataset": ("data set", "dataset.name")}
"""Its name in messages, and the recipe's key."""
WRITE = "repo.write"
"""The permission of a fine-grained token that a push needs."""


def questions(recipe: Recipe, *, local: bool, data: bool = True) -> list[Question]:
    """Queries about what is not on this machine. If not `data`, its names are not Hub names."""
    queries, token = [], credential(local=local)
    if not recipe.model.name.startswith(BUILTIN) and not Path(recipe.model.name).is_dir():
        queries.append(Question(MODEL, partial(about_model, recipe, token)))
    for source in recipe.dataset.sources:
        if data and is_there(source):
            queries.append(Question(DATA, partial(about_data, source, token), of_data=True))
    if recipe.hub is not None and isinstance(token, str):
        queries.append(Question(PUSH, partial(about_push, recipe.hub, token)))
    return queries


def is_there(source: Source) -> bool:
    """Is it a data set on the Hub, not a file or a folder?"""
    return local_path(source) is None and not Path(source.name).is_dir()


def credential(*, local: bool) -> Token:
    """The token that a launch passes to the machines, else False; None = the login on this machine."""
    return os.environ.get("HF_TOKEN", "").strip() or (None if local else False)


def about_model(recipe: Recipe, token: Token) -> Answer:
    """Check that the model exists, that this token may read it, and that its config.json fits the recipe."""
    from huggingface_hub import HfApi, hf_hub_download

    name, revision = recipe.model.name, recipe.model.revision
    with _refusals("model", name, revision, token):
        HfApi().model_info(name, revision=revision, timeout=REQUEST_S, token=token)
        HfApi().auth_check(name, token=token)
        path = hf_hub_download(name, CONFIG, revision=revision, token=token, etag_timeout=REQUEST_S)
    check_config(json.loads(Path(path).read_text(encoding="utf-8")), recipe, f"{name}/{CONFIG}")
    return Answer(Finding(MODEL, "ok", f"{name} can be read, and its {CONFIG} fits the recipe"))


def about_data(source: Source, token: Token) -> Answer:
    """Check that the data set exists, that this token may read it, and its columns and split as far as on its card."""
    from huggingface_hub import HfApi

    with _refusals("dataset", source.name, source.revision, token):
        info = HfApi().dataset_info(source.name, revision=source.revision, timeout=REQUEST_S, token=token)
        HfApi().auth_check(source.name, repo_type="dataset", token=token)
    card = _on_card(getattr(info.card_data, "dataset_info", None), source)
    names = [str(feature["name"]) for feature in card.get("features") or () if "name" in feature]
    if names:
        find_columns(names, source)
    splits = {str(split.get("name")): split.get("num_examples") for split in card.get("splits") or ()}
    plain = source.split in splits
    if splits and not plain and source.split.isidentifier():  # not a slice or sum of splits
        raise RequestError(
            f"{source.name} has no split {source.split!r}; it has {', '.join(splits)}", "correct dataset.split"
        )
    rows = splits[source.split] if plain else None
    counted = f"has {rows:,} rows according to its card" if rows else "its card doesn't state the number of rows"
    used = None if rows is None else source.share_of(rows)
    return Answer(Finding(DATA, "ok", f"{source.name} can be read; {counted}. Its rows are read on the machine"), used)


def _on_card(info: Any, source: Source) -> Mapping[str, Any]:
    """The card's entry for the wanted configuration; empty if it has none."""
    entries = [entry for entry in (info if isinstance(info, list) else [info]) if isinstance(entry, Mapping)]
    names = [str(entry.get("config_name", "default")) for entry in entries]
    if source.config is None and len(entries) == 1:
        return entries[0]
    if len(entries) > 1 and source.config is None and "default" not in names:
        raise RequestError(f"{source.name} has several configurations: {', '.join(names)}", "set dataset.config to one")
    return next((entry for entry, name in zip(entries, names, strict=True) if name == (source.config or "default")), {})


def about_push(hub: Hub, token: str) -> Answer:
    """Check write access. Failures are not errors, because a run whose push fails still has its model in the bucket."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        me = HfApi().whoami(token)
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        return Answer(_no_push(hub, "HF_TOKEN is not a valid token"))
    if why := why_no_push(me, hub.repo):
        return Answer(_no_push(hub, why))
    return Answer(Finding(PUSH, "ok", f"{me.get('name')} may push to {hub.repo}"))


def _no_push(hub: Hub, why: str) -> Finding:
    return Finding(
        PUSH,
        "warning",
        f"the model will stay in the bucket and not be pushed to {hub.repo}: {why}",
        "use a token with write access, or push it later: notus-train export RUN --push OWNER/NAME",
    )


def why_no_push(me: Mapping[str, Any], repo: str) -> str:
    """Why a push is not allowed, from the Hub's answer to `whoami`; '' if it is, or not known."""
    owner = repo.partition("/")[0]
    granted = (me.get("auth") or {}).get("accessToken") or {}
    role = granted.get("role")
    if role == "read":
        return "HF_TOKEN may only read"
    if role == "fineGrained":
        scopes = (granted.get("fineGrained") or {}).get("scoped")
        if isinstance(scopes, list) and not any(_writes(scope, owner, repo) for scope in scopes):
            return f"HF_TOKEN is fine-grained and has no {WRITE} for {owner}"
        return ""
    organisations = {str(one.get("name")): one.get("roleInOrg") for one in me.get("orgs") or ()}
    if owner != me.get("name") and owner not in organisations:
        return f"{me.get('name')} is not {owner} or a member of it"
    if organisations.get(owner) == "read":
        return f"{me.get('name')} has only read access to {owner}"
    return ""


def _writes(scope: Mapping[str, Any], owner: str, repo: str) -> bool:
    entity = (scope.get("entity") or {}).get("name")
    return entity in (owner, repo) and WRITE in (scope.get("permissions") or ())


@contextlib.contextmanager
def _refusals(kind: Kind, name: str, revision: str | None, token: Token) -> Iterator[None]:
    """Convert the Hub's refusals to `RequestError`. Other errors of its client are not caught."""
    from huggingface_hub import errors

    what, key = WORDS[kind]
    who = "the account of HF_TOKEN" if token else "no account (HF_TOKEN is not set)"
    missing = RequestError(
        f"there is no {what} {name!r} on the Hub, or it is private and {who} can't read it",
        f"correct {key}, or set HF_TOKEN",
    )
    try:
        yield
    except errors.GatedRepoError as error:
        raise RequestError(
            f"the {what} {name} is gated, and {who} has no access",
            "request access on its Hub page, and set HF_TOKEN to a token of that account",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RequestError(f"the {what} {name} has no revision {revision!r}", f"correct {key[:-4]}revision") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise missing from error
    except errors.DisabledRepoError as error:
        raise RequestError(f"the {what} {name} was disabled on the Hub", f"choose another one in {key}") from error
    except errors.EntryNotFoundError as error:
        raise RequestError(
            f"the {what} {name} has no {CONFIG}", f"correct {key}: it is not a transformers model"
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        if not token:  # without a token, the Hub doesn't distinguish missing from private
            raise missing from error
        raise RequestError("the Hub rejects HF_TOKEN as invalid", "set it to a valid token, or unset it") from error
