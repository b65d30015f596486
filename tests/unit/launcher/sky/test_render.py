"""The rendered SkyPilot task, without SkyPilot (tests/integration/test_sky.py parses it with SkyPilot itself)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import boto3
import obstore
import pytest
from botocore.exceptions import InvalidConfigError
from ruamel.yaml import YAML

from checkpoints.errors import BucketUnusable
from checkpoints.storage.lifecycle_rules import _client
from checkpoints.storage.list_prices import AMAZON_S3 as S3
from checkpoints.storage.list_prices import CLOUDFLARE_R2 as R2
from checkpoints.storage.s3 import BACKEND
from checkpoints.storage.s3_location import s3_location
from launcher.planning.plan import Candidate
from launcher.planning.storage_costs import bucket_for
from launcher.policy.limits import Limits, limits_of
from launcher.policy.spot.market import SpellEnds
from launcher.policy.spot.zone_pooling import MarketEnds
from launcher.run_identity import RunIdentity, identity_here
from launcher.sky.example_tasks import shipped_tasks
from launcher.sky.render import needed_secrets, setup_script, task_config, to_yaml
from tests.support.paths import ROOT
from trainer.config.recipe import load_recipe

RECIPE = load_recipe("notus-7b-dpo")
LADDER = (Candidate(cloud="gcp", gpus="A100:8", spot=True), Candidate(cloud="lambda", gpus="A100:8", spot=False))


def test_the_shipped_tasks_are_what_the_recipes_render_to() -> None:
    tasks = shipped_tasks()
    assert sorted(path.name for path in (ROOT / "sky_tasks").glob("*.yaml")) == sorted(tasks)
    for name, text in tasks.items():
        assert (ROOT / "sky_tasks" / name).read_text() == text, "run `make sky-tasks`"


def test_the_yaml_says_what_the_plan_says() -> None:
    config = task_config(RECIPE, LADDER, run="my-run", bucket="gs://b/notus")
    back = YAML(typ="safe").load(to_yaml(config))
    assert back == config
    assert back["name"] == "my-run"
    assert back["resources"]["ordered"] == [
        {"infra": "gcp", "accelerators": "A100:8", "use_spot": True},
        {"infra": "lambda", "accelerators": "A100:8", "use_spot": False},
    ]
    assert back["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert back["resources"]["job_recovery"]["max_restarts_on_errors"] == 0
    assert back["envs"] == {
        "NOTUS_BUCKET": "gs://b/notus",
        "NOTUS_RUN": "my-run",
        "NOTUS_RECIPE": "notus-7b-dpo",
        "NOTUS_HOURS": "12",
        "NOTUS_DEADLINE": "",
        "NOTUS_BUDGET_USD": "",
        "NOTUS_HAZARD_H": "",
    }


def test_the_limits_travel_as_the_strategy_reads_them() -> None:
    deadline = datetime(2026, 11, 25, 8, tzinfo=timezone(timedelta(hours=1)))
    zones = {"us-central1-a": SpellEnds(5, 4.25), "Quebec, CA/1": SpellEnds(0, 2)}
    spell_ends = {
        ("gcp", "A100:8"): MarketEnds(SpellEnds(12, 9.5), zones),
        ("aws", "A100-80GB:8"): MarketEnds(SpellEnds(0, 3)),
    }
    limits = Limits(hours=3.5, deadline=deadline, budget_usd=250, hazard_h=2.5, spell_ends=spell_ends)
    limits = replace(limits, restore_usd=5.22, bucket_cloud="aws", store_usd_per_h=0.18)
    envs = task_config(RECIPE, LADDER, run="my-run", bucket="gs://b", strategy="NOTUS", limits=limits)["envs"]
    assert envs["NOTUS_HOURS"] == "3.5"
    assert envs["NOTUS_DEADLINE"] == "2026-11-25T07:00:00+00:00"
    assert envs["NOTUS_BUDGET_USD"] == "250"
    assert envs["NOTUS_HAZARD_H"] == "2.5"
    assert (envs["NOTUS_RESTORE_USD"], envs["NOTUS_BUCKET_CLOUD"], envs["NOTUS_STORE_USD_H"]) == ("5.22", "aws", "0.18")
    assert envs["NOTUS_MET"] == (
        "aws/A100-80GB:8=0/3 gcp/A100:8=12/9.5 gcp/A100:8/Quebec%2C%20CA%2F1=0/2 gcp/A100:8/us-central1-a=5/4.25"
    )
    assert limits_of(envs) == replace(limits, deadline=deadline.astimezone(UTC))


def test_what_is_installed_is_what_was_sent() -> None:
    """Never our name from an index: whoever registers it there would run code on the user's machines."""
    assert "'.[trainer]'" in setup_script()
    wheel = "notus_launch-0.1.0-py3-none-any.whl"
    assert f"'./{wheel}[trainer]'" in setup_script(wheel)
    assert f"'./{wheel}[trainer,qlora]'" in setup_script(wheel, qlora=True)
    for script in (setup_script(), setup_script(wheel)):
        assert "'.[" not in script or wheel not in script
        assert not re.search(r"notus-launch\S*==", script)


def test_secrets_are_names_never_values() -> None:
    for text in shipped_tasks().values():
        config = YAML(typ="safe").load(text)
        assert set(config["secrets"].values()) == {None}
    assert needed_secrets(RECIPE, "gs://b", LADDER[:1]) == ["HF_TOKEN", "WANDB_API_KEY"]
    assert needed_secrets(RECIPE, "gs://b", LADDER)[-1] == "GOOGLE_SERVICE_ACCOUNT_KEY", "Lambda's machines need a key"
    assert "AWS_SECRET_ACCESS_KEY" in needed_secrets(RECIPE, "s3://b", LADDER)


def test_settings_of_the_trackers_travel_and_nothing_else_of_the_environment() -> None:
    mine = {"WANDB_PROJECT": "dpo", "WANDB_ENTITY": "team", "WANDB_BASE_URL": "https://w", "HF_ENDPOINT": "https://h"}
    rest = {"WANDB_API_KEY": "secret", "PATH": "/bin", "WANDB_NAME": "other", "AWS_SECRET_ACCESS_KEY": "secret"}
    envs = task_config(RECIPE, LADDER, run="r", bucket="gs://b", environment=mine | rest)["envs"]
    assert {name: envs.get(name) for name in mine} == mine
    assert not set(rest) & set(envs)
    tiny = load_recipe("tiny-dpo")
    assert "wandb" not in tiny.tracking
    assert set(mine) & set(task_config(tiny, LADDER, run="r", bucket="gs://b", environment=mine)["envs"]) == {
        "HF_ENDPOINT"
    }


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Writes ~/.aws/config."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return lambda text: (tmp_path / "config").write_text(text) and None


IGNORING = "[default]\nignore_configured_endpoint_urls = true\nendpoint_url = https://r2.example\n"
SERVICES = "[profile r2]\nregion = auto\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = https://r2.example\n"


@pytest.mark.parametrize(
    ("config", "variables", "region", "endpoint"),
    [
        ("", {}, "", ""),
        (
            "[default]\nregion = eu-central-1\nendpoint_url = https://r2.example\n",
            {},
            "eu-central-1",
            "https://r2.example",
        ),
        (SERVICES, {}, "", ""),
        (SERVICES, {"AWS_PROFILE": "r2"}, "auto", "https://r2.example"),
        (SERVICES, {"AWS_PROFILE": "r2", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "auto", ""),
        (SERVICES, {"AWS_PROFILE": "r2", "AWS_ENDPOINT_URL": "http://a", "AWS_REGION": ""}, "auto", "http://a"),
        ("[default]\nregion = eu-central-1\n", {"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1", ""),
        ("", {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "eu-north-1"}, "eu-north-1", ""),
        ("", {"AWS_ENDPOINT_URL": "http://all", "AWS_ENDPOINT_URL_S3": "http://s3"}, "", "http://s3"),
        (f"{IGNORING}region = eu-central-1\n", {}, "eu-central-1", ""),
        (IGNORING, {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false"}, "", "https://r2.example"),
        (IGNORING, {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": ""}, "", "https://r2.example"),
        (IGNORING, {"AWS_REGION": "auto", "AWS_ENDPOINT_URL": "http://a"}, "auto", ""),
        (
            IGNORING,
            {"AWS_REGION": "auto", "AWS_ENDPOINT_URL": "http://a", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "False"},
            "auto",
            "http://a",
        ),
        ("", {"AWS_ENDPOINT_URL_S3": "http://s3", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "TRUE"}, "", ""),
        ("[default]\nservices = nope\n", {"AWS_ENDPOINT_URL": "http://a"}, "", "http://a"),
        ("[default]\nservices = nope\n", {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "", ""),
        (SERVICES.replace("s3 =", "dynamodb ="), {"AWS_PROFILE": "r2"}, "auto", ""),
    ],
)
def test_the_bucket_is_where_this_machines_tools_find_it(
    profile: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    config: str,
    variables: dict[str, str],
    region: str,
    endpoint: str,
) -> None:
    """Region and endpoint of the task, the fees and the run's identity, all by one way."""
    profile(config)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    envs = task_config(RECIPE, LADDER, run="r", bucket="s3://b", environment=os.environ)["envs"]
    assert (envs["AWS_REGION"], envs["AWS_ENDPOINT_URL"]) == (region, endpoint)
    assert bucket_for("s3://b").label == (R2 if endpoint else S3).label
    assert identity_here("s3://b/", "r") == RunIdentity("s3://b", endpoint, "r")
    region_name = region or "us-east-1"  # boto3 knows no AWS_REGION
    client = boto3.Session().client("s3", region_name, aws_access_key_id="x", aws_secret_access_key="x")
    assert client.meta.endpoint_url == endpoint or (not endpoint and client.meta.endpoint_url.endswith("amazonaws.com"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    opened, rules = BACKEND.open("s3://b/p"), _client()
    url = obstore.sign(opened._store, "GET", "k", timedelta(minutes=1))  # type: ignore[arg-type]
    assert url.startswith(f"{endpoint or f'https://s3.{region_name}.amazonaws.com'}/b/p/k?"), "the store here, too"
    assert f"%2F{region_name}%2Fs3%2F" in url
    assert rules.meta.region_name in (region, "us-east-1", "aws-global")
    assert (rules.meta.endpoint_url == endpoint) == bool(endpoint)


def test_the_environment_of_the_process_is_not_another_users(
    profile: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller works for many; obstore and boto3 would look into its own environment and profile."""
    profile("[default]\nregion = eu-central-1\nendpoint_url = https://r2.example\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, "http://the.controllers")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    theirs = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "", "AWS_ENDPOINT_URL": ""}
    opened = BACKEND.open("s3://b/p", theirs)
    url = obstore.sign(opened._store, "GET", "k", timedelta(minutes=1))  # type: ignore[arg-type]
    assert url.startswith("https://s3.us-east-1.amazonaws.com/b/p/k?")


def test_services_that_are_not_there_are_named(profile: Callable[[str], None]) -> None:
    profile("[default]\nservices = nope\nendpoint_url = https://r2.example\n")
    with pytest.raises(InvalidConfigError, match="nope"):
        boto3.Session().client("s3", "us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    with pytest.raises(BucketUnusable, match="nope"):
        s3_location()


def test_a_profile_that_is_not_there_is_named(profile: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    profile("[default]\n")
    monkeypatch.setenv("AWS_PROFILE", "typo")
    with pytest.raises(BucketUnusable, match="typo"):
        s3_location()
