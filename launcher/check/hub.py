"""What the Hugging Face Hub says of a recipe's model, data and push, with the token that the machines will have.

That is HF_TOKEN of the environment: a login that lies on this machine's disk doesn't travel, and counts for local runs.
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
"""As the Hub's client takes it."""
WORDS: Mapping[Kind, tuple[str, str]] = {"model": ("model", "model.name"), "dataset": ("data set", "dataset.name")}
"""What it is called, and the recipe's key."""
WRITE = "repo.write"
"""The permission of a fine-grained token that a push needs."""


def questions(recipe: Recipe, *, local: bool, data: bool = True) -> list[Question]:
    """None where everything lies on this machine. Not `data`: its names are no names on the Hub."""
    asked, token = [], credential(local=local)
    if not recipe.model.name.startswith(BUILTIN) and not Path(recipe.model.name).is_dir():
        asked.append(Question(MODEL, partial(about_model, recipe, token)))
    for source in recipe.dataset.sources:
        if data and is_there(source):
            asked.append(Question(DATA, partial(about_data, source, token), of_data=True))
    if recipe.hub is not None and isinstance(token, str):
        asked.append(Question(PUSH, partial(about_push, recipe.hub, token)))
    return asked


def is_there(source: Source) -> bool:
    """Is it named as a set on the Hub? A file or a folder isn't."""
    return local_path(source) is None and not Path(source.name).is_dir()


def credential(*, local: bool) -> Token:
    """The token that a launch hands to the machines, else False; None = what the Hub's client finds on this machine."""
    return os.environ.get("HF_TOKEN", "").strip() or (None if local else False)


def about_model(recipe: Recipe, token: Token) -> Answer:
    """Is it there, may this token read it, and does its config.json fit the recipe?"""
    from huggingface_hub import HfApi, hf_hub_download

    name, revision = recipe.model.name, recipe.model.revision
    with _refusals("model", name, revision, token):
        HfApi().model_info(name, revision=revision, timeout=REQUEST_S, token=token)
        HfApi().auth_check(name, token=token)
        path = hf_hub_download(name, CONFIG, revision=revision, token=token, etag_timeout=REQUEST_S)
    check_config(json.loads(Path(path).read_text(encoding="utf-8")), recipe, f"{name}/{CONFIG}")
    return Answer(Finding(MODEL, "ok", f"{name} can be read, and its {CONFIG} fits the recipe"))


def about_data(source: Source, token: Token) -> Answer:
    """Is it there, may this token read it, and has it the columns and the split, as far as its card tells?"""
    from huggingface_hub import HfApi

    with _refusals("dataset", source.name, source.revision, token):
        found = HfApi().dataset_info(source.name, revision=source.revision, timeout=REQUEST_S, token=token)
        HfApi().auth_check(source.name, repo_type="dataset", token=token)
    card = _on_card(getattr(found.card_data, "dataset_info", None), source)
    names = [str(feature["name"]) for feature in card.get("features") or () if "name" in feature]
    if names:
        find_columns(names, source)
    splits = {str(split.get("name")): split.get("num_examples") for split in card.get("splits") or ()}
    plain = source.split in splits
    if splits and not plain and source.split.isidentifier():  # and no slice or sum of splits
        raise RequestError(
            f"{source.name} has no split {source.split!r}; it has {', '.join(splits)}", "correct dataset.split"
        )
    rows = splits[source.split] if plain else None
    counted = f"has {rows:,} rows, by its card" if rows else "its card doesn't tell how many rows it has"
    used = None if rows is None else source.share_of(rows)
    return Answer(Finding(DATA, "ok", f"{source.name} can be read; {counted}. Its rows are read on the machine"), used)


def _on_card(told: Any, source: Source) -> Mapping[str, Any]:
    """What a set's card says of the wanted configuration; nothing where it doesn't."""
    entries = [entry for entry in (told if isinstance(told, list) else [told]) if isinstance(entry, Mapping)]
    names = [str(entry.get("config_name", "default")) for entry in entries]
    if source.config is None and len(entries) == 1:
        return entries[0]
    if len(entries) > 1 and source.config is None and "default" not in names:
        raise RequestError(f"{source.name} has several configurations: {', '.join(names)}", "set dataset.config to one")
    return next((entry for entry, name in zip(entries, names, strict=True) if name == (source.config or "default")), {})


def about_push(hub: Hub, token: str) -> Answer:
    """May this token write there? A run whose push fails has its model in the bucket, so nothing here is an error."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        me = HfApi().whoami(token)
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        return Answer(_no_push(hub, "HF_TOKEN is no valid token"))
    if why := why_no_push(me, hub.repo):
        return Answer(_no_push(hub, why))
    return Answer(Finding(PUSH, "ok", f"{me.get('name')} may push to {hub.repo}"))


def _no_push(hub: Hub, why: str) -> Finding:
    return Finding(
        PUSH,
        "warning",
        f"the model will stay in the bucket and not be pushed to {hub.repo}: {why}",
        "use a token that may write there, or push it later: notus-train export RUN --push OWNER/NAME",
    )


def why_no_push(me: Mapping[str, Any], repo: str) -> str:
    """From the Hub's answer to `whoami`; '' where it may, or where the answer doesn't tell."""
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
        return f"{me.get('name')} is not {owner}, and no member of it"
    if organisations.get(owner) == "read":
        return f"{me.get('name')} may only read what is {owner}'s"
    return ""


def _writes(scope: Mapping[str, Any], owner: str, repo: str) -> bool:
    entity = (scope.get("entity") or {}).get("name")
    return entity in (owner, repo) and WRITE in (scope.get("permissions") or ())


@contextlib.contextmanager
def _refusals(kind: Kind, name: str, revision: str | None, token: Token) -> Iterator[None]:
    """The Hub's "no" as a `RequestError`. A Hub that isn't there raises as its client does."""
    from huggingface_hub import errors

    what, key = WORDS[kind]
    who = "the account of HF_TOKEN" if token else "no account (HF_TOKEN is not set)"
    missing = RequestError(
        f"there is no {what} {name!r} on the Hub, or it is private and {who} may not read it",
        f"correct {key}, or set HF_TOKEN",
    )
    try:
        yield
    except errors.GatedRepoError as error:
        raise RequestError(
            f"the {what} {name} is gated, and {who} has no access",
            "ask for access on its page on the Hub, and set HF_TOKEN to a token of that account",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RequestError(f"the {what} {name} has no revision {revision!r}", f"correct {key[:-4]}revision") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise missing from error
    except errors.DisabledRepoError as error:
        raise RequestError(f"the {what} {name} was disabled on the Hub", f"choose another one in {key}") from error
    except errors.EntryNotFoundError as error:
        raise RequestError(
            f"the {what} {name} has no {CONFIG}", f"correct {key}: it is no model of transformers"
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        if not token:  # to whoever has none the Hub doesn't tell what is missing from what is private
            raise missing from error
        raise RequestError(
            "the Hub says that HF_TOKEN is no valid token", "set it to a valid one, or unset it"
        ) from error
