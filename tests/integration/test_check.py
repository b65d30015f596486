"""`notus-launch check` with the Hub's own client against a Hub on loopback, and what it costs a launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Launcher, recipe
from tests.support.hub_server import HubServer

PAIR_COLUMNS = [{"name": "prompt"}, {"name": "chosen"}, {"name": "rejected"}]
SPLITS = [{"name": "train", "num_examples": 4000}, {"name": "test", "num_examples": 100}]
CONFIG = {"vocab_size": 32000, "pad_token_id": 2, "max_position_embeddings": 4096}
ADA = {"name": "ada", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
READER = {"name": "ada", "orgs": [], "auth": {"accessToken": {"role": "read"}}}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    made = HubServer(
        models={
            "lab/base": CONFIG,
            "lab/secret": CONFIG,
            "lab/short": {**CONFIG, "max_position_embeddings": 128},
            "lab/gguf": {},
        },
        sets={
            "lab/pairs": {"features": PAIR_COLUMNS, "splits": SPLITS},
            "lab/several": [{"config_name": name, "features": PAIR_COLUMNS, "splits": SPLITS} for name in ("a", "b")],
            "lab/other": {"features": [{"name": "question"}, {"name": "answer"}], "splits": SPLITS},
            "lab/bare": {},
        },
        gated={"lab/secret"},
        people={"hf_ada": ADA, "hf_reader": READER, "hf_admitted": ADA},
        admitted={"hf_admitted"},
        keys={"wandbkey": "ada"},
    )
    with made.running():
        yield made


def check(hub: HubServer, folder: Path, *changes: tuple[str, str], **environment: str) -> dict[str, Any]:
    """The findings of a variant of tiny-dpo, by what they are about, in a home of its own."""
    return {found["what"]: found for found in told(hub, folder, *changes, **environment)["findings"]}


def told(hub: HubServer, folder: Path, *changes: tuple[str, str], **environment: str) -> dict[str, Any]:
    done = run_check(hub, folder, recipe(folder, "tiny-dpo", *changes), **environment)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if answer["ok"] else 2), done.stderr
    assert not done.stderr
    return answer


def run_check(hub: HubServer, folder: Path, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WANDB_"))}
    return subprocess.run(
        [sys.executable, "-m", "launcher.cli", "check", path, "-o", "json"],
        env={**kept, "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.url, "WANDB_BASE_URL": hub.url, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def on_the_hub(model: str = "lab/base", data: str = "lab/pairs", more: str = "") -> tuple[tuple[str, str], ...]:
    return (
        ("  name: builtin:tiny-llama", f"  name: {model}"),
        ("  name: builtin:tiny-preferences", f"  name: {data}{more}"),
    )


WANDB = ("tracking: [tensorboard]", "tracking: [wandb]")
MODEL, DATA, PUSH = "model on the Hub", "data on the Hub", "push to the Hub"


def test_what_is_there_and_may_be_read_is_fine_and_its_rows_are_told(hub: HubServer, tmp_path: Path) -> None:
    answer = told(hub, tmp_path, *on_the_hub())
    assert [(found["what"], found["state"]) for found in answer["findings"]] == [
        (MODEL, "ok"),
        (DATA, "ok"),
        ("steps", "ok"),
    ]
    assert (
        answer["findings"][2]["detail"] == "about 996 steps: 2 epochs of 3,984 rows, 8 per step on 2 ranks, 16 held out"
    )
    assert (answer["rows"], answer["usable"], answer["trained"]) == (4000, None, 3984)


@pytest.mark.parametrize(
    ("changes", "token", "what", "said"),
    [
        (
            on_the_hub("lab/nothing"),
            "",
            MODEL,
            "there is no model 'lab/nothing' on the Hub, or it is private and no account",
        ),
        (
            on_the_hub("lab/secret"),
            "",
            MODEL,
            "the model lab/secret is gated, and no account (HF_TOKEN is not set) has no access",
        ),
        (
            on_the_hub("lab/secret"),
            "hf_ada",
            MODEL,
            "the model lab/secret is gated, and the account of HF_TOKEN has no access",
        ),
        (
            on_the_hub("lab/short"),
            "",
            MODEL,
            "lab/short/config.json: dpo.max_length 256 is more than the model's 128 positions",
        ),
        (on_the_hub("lab/gguf"), "", MODEL, "the model lab/gguf has no config.json"),
        (on_the_hub("lab/base\n  revision: v2"), "", MODEL, "the model lab/base has no revision 'v2'"),
        (on_the_hub(), "hf_unknown", MODEL, "the Hub rejects HF_TOKEN as invalid"),
        (on_the_hub(data="lab/nothing"), "", DATA, "there is no data set 'lab/nothing' on the Hub"),
        (on_the_hub(data="lab/other"), "", DATA, "lab/other has no column 'prompt' and no column 'chosen'"),
        (
            on_the_hub(more="\n  split: train_prefs"),
            "",
            DATA,
            "lab/pairs has no split 'train_prefs'; it has train, test",
        ),
        (on_the_hub(data="lab/several"), "", DATA, "lab/several has several configurations: a, b"),
    ],
)
def test_what_the_machine_would_meet_is_told_here(
    hub: HubServer, tmp_path: Path, changes: tuple[tuple[str, str], ...], token: str, what: str, said: str
) -> None:
    found = check(hub, tmp_path, *changes, HF_TOKEN=token)[what]
    assert found["state"] == "wrong"
    assert said in found["detail"]
    assert found["fix"]


def test_what_a_card_does_not_tell_is_not_made_up(hub: HubServer, tmp_path: Path) -> None:
    answer = told(hub, tmp_path, *on_the_hub("lab/secret", "lab/bare"), HF_TOKEN="hf_admitted")
    assert [(found["what"], found["state"]) for found in answer["findings"]] == [(MODEL, "ok"), (DATA, "ok")]
    assert answer["rows"] is None
    chosen = told(hub, tmp_path, *on_the_hub(data="lab/several", more="\n  config: b\n  split: train[:50%]"))
    assert chosen["ok"]
    assert chosen["rows"] is None, "a slice is not counted"


def test_a_push_that_will_fail_and_a_key_that_is_refused(hub: HubServer, tmp_path: Path) -> None:
    more = (("hardware:\n", "hub:\n  repo: ada/model\nhardware:\n"), WANDB)
    found = check(hub, tmp_path, *more, HF_TOKEN="hf_reader", WANDB_API_KEY="other")
    assert found[PUSH]["state"] == "warning", "its model stays in the bucket"
    assert "HF_TOKEN may only read" in found[PUSH]["detail"]
    assert (found["Weights & Biases"]["state"], "rejects" in found["Weights & Biases"]["detail"]) == ("wrong", True)
    found = check(hub, tmp_path, *more, HF_TOKEN="hf_ada", WANDB_API_KEY="wandbkey")
    assert [found[what]["state"] for what in (PUSH, "Weights & Biases")] == ["ok", "ok"]
    assert "hf_" not in json.dumps(found)
    assert "wandbkey" not in json.dumps(found)


@pytest.mark.parametrize("away", ["down", "closed port"])
def test_a_hub_that_is_away_stops_nobody(hub: HubServer, tmp_path: Path, away: str) -> None:
    hub.broken = away == "down"
    where = {} if hub.broken else {"HF_ENDPOINT": "http://127.0.0.1:9", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    answer = told(hub, tmp_path, *on_the_hub(), WANDB, HF_TOKEN="hf_ada", WANDB_API_KEY="wandbkey", **where)
    assert answer["ok"]
    assert [found["state"] for found in answer["findings"]] == ["unknown"] * 3


def test_a_launch_does_the_same_before_anything_is_started(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Which?", "chosen": "A", "rejected": "A "}\n' * 3)
    mine = recipe(tmp_path, "tiny-dpo", ("name: builtin:tiny-preferences", "name: pairs.jsonl"))
    done = launcher.run("--cloud", "local", "--recipe", mine, "--name", "bad")
    assert done.code == 2, done.err
    assert "none of the 3 rows of" in done.err
    assert "3 both answers are the same (pairs.jsonl:1, pairs.jsonl:2, pairs.jsonl:3)" in done.err
    assert not list((launcher.home / "bucket").glob("*")), "nothing was begun"
