"""The rendered SkyPilot task, without SkyPilot (tests/integration/test_sky.py parses it with SkyPilot itself)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from ruamel.yaml import YAML

from launcher.plan import Rung
from launcher.policy.limits import Limits, limits_of
from launcher.policy.market import Met
from launcher.policy.zones import MarketMet
from launcher.sky.render import needed_secrets, setup_script, task_config, to_yaml
from launcher.sky.tasks import shipped_tasks
from trainer.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = load_recipe("notus-7b-dpo")
LADDER = (Rung(cloud="gcp", gpus="A100:8", spot=True), Rung(cloud="lambda", gpus="A100:8", spot=False))


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
    zones = {"us-central1-a": Met(5, 4.25), "Quebec, CA/1": Met(0, 2)}
    met = {("gcp", "A100:8"): MarketMet(Met(12, 9.5), zones), ("aws", "A100-80GB:8"): MarketMet(Met(0, 3))}
    limits = Limits(hours=3.5, deadline=deadline, budget_usd=250, hazard_h=2.5, met=met)
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


def test_an_installed_release_travels_as_its_number() -> None:
    assert "'.[trainer]'" in setup_script()
    assert "'notus-launch[trainer]==0.1.0'" in setup_script("0.1.0")
    assert "'.[" not in setup_script("0.1.0")
    assert "'notus-launch[trainer,qlora]==0.1.0'" in setup_script("0.1.0", qlora=True)


def test_secrets_are_names_never_values() -> None:
    for text in shipped_tasks().values():
        config = YAML(typ="safe").load(text)
        assert set(config["secrets"].values()) == {None}
    assert needed_secrets(RECIPE, "gs://b", LADDER[:1]) == ["HF_TOKEN", "WANDB_API_KEY"]
    assert needed_secrets(RECIPE, "gs://b", LADDER)[-1] == "GOOGLE_SERVICE_ACCOUNT_KEY", "Lambda's machines need a key"
    assert "AWS_SECRET_ACCESS_KEY" in needed_secrets(RECIPE, "s3://b", LADDER)
