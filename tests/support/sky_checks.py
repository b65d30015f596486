"""Run by test_sky_identity.py, in a process of its own: SkyPilot writes below HOME when it is imported.

`python -m tests.support.sky_checks NAME`: what we believe of SkyPilot 0.14.1, asked of it.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sky
    from sky import check, exceptions
    from sky.data import storage_utils
    from sky.jobs import state
    from sky.jobs import utils as jobs_utils
    from sky.schemas.api.responses import ManagedJobRecord
    from sky.utils import common_utils, dag_utils, registry, schemas, validator, yaml_utils

from checkpoints.util.keys import is_run_name
from launcher.errors import UnclearJob
from launcher.request import check_cloud_run_name, cloud_run_name
from launcher.run_identity import run_identity
from launcher.sky.client import own_job
from launcher.sky.example_tasks import LADDER, shipped_tasks
from launcher.sky.jobs import origin_of
from launcher.sky.render import task_config, to_yaml
from launcher.sky.setup.credentials import (
    KEY,
    NO_UPLOAD,
    SETTABLE,
    ask_skypilot,
    mounted_credentials,
    safe_remote_identity,
)
from launcher.sky.workdir import prepare_workdir
from trainer.config.recipe import load_recipe

RUN_NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
TRAPS = (
    "on off yes no y n null ~ 1e5 1.5e3 017 0o17 0x1f 0b11 2026-11-28 2026-11-28T10:00:00Z 12:30:45 1_000 = << .inf .nan "
    "true NULL - -- --- ... * & ! ? : | > @x %x `x` a:b #x +1 1. 190:20:30"
)
MORE_TRAPS = ("", " ", "a: b", "a #b", "- a", "\t", "é", "\x85", "'", '"', "a\n", "\n", "a\n\nb\n", " a\n", "a\nb")
TEXTS = st.one_of(
    st.sampled_from([*TRAPS.split(), *MORE_TRAPS]),
    RUN_NAMES,
    st.text(max_size=20),
    st.from_regex(r"[0-9_.:+eExobA-F-]{1,12}", fullmatch=True),
)


@settings(max_examples=200, deadline=None)
@given(RUN_NAMES)
def names(name: str) -> None:
    better = cloud_run_name(name)
    assert is_run_name(better)
    assert check_cloud_run_name(better) == better
    common_utils.check_cluster_name_is_valid(jobs_utils.generate_managed_job_cluster_name(better, 12345))
    if better != name:
        with pytest.raises(exceptions.InvalidClusterNameError):
            common_utils.check_cluster_name_is_valid(jobs_utils.generate_managed_job_cluster_name(name, 12345))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(TEXTS, st.one_of(TEXTS, st.none(), st.booleans(), st.integers()), max_size=6), TEXTS)
def yaml(envs: dict[str, Any], name: str) -> None:
    config = task_config(load_recipe("tiny-dpo"), LADDER, run=name, bucket=f"s3://{name}")
    config["envs"] |= envs
    assert yaml_utils.safe_load(to_yaml(config)) == config


def shown(dag: sky.Dag) -> str:
    """`user_yaml` of a job: what the server keeps of the task that it was sent."""
    there = dag_utils.load_dag_from_yaml_str(dag_utils.dump_dag_to_yaml_str(dag))
    return str(dag_utils.dump_dag_to_yaml_str(there, use_user_specified_yaml=True))


def ours() -> None:
    config = task_config(
        load_recipe("tiny-dpo"), LADDER, run="r", bucket="s3://b/x", submission="abc", workdir=str(Path.home())
    )
    del config["secrets"]
    task = sky.Task.from_yaml_config(config)
    task.update_secrets({"HF_TOKEN": "very-secret"})
    text = shown(dag_utils.convert_entrypoint_to_dag(task))
    assert "very-secret" not in text
    assert origin_of(text, "notus-launch --name r") == ("run", run_identity("s3://b/x", "r"), "abc")


def plain() -> None:
    """Why `told_by` reads the command line too."""
    given = [("NOTUS_BUCKET", "gs://b"), ("NOTUS_RUN", "mine")]
    text = shown(dag_utils.load_dag_from_yaml_str(shipped_tasks()["notus-7b-dpo.yaml"], env_overrides=given))
    assert yaml_utils.read_yaml_all_str(text)[-1]["envs"]["NOTUS_RUN"] == "notus-7b-dpo"
    command = "sky jobs launch t.yaml " + " ".join(f"--env {name}={value}" for name, value in given)
    assert origin_of(text, command).run == run_identity("gs://b", "mine")


def sent() -> None:
    """Below a home that is a repository; the test has made it."""
    folder = Path.home() / ".notus/sent/r"
    prepare_workdir("tiny-dpo", folder)
    assert storage_utils.get_excluded_files(str(folder)) == []
    (folder / ".skyignore").unlink()
    assert storage_utils.get_excluded_files(str(folder)) != [], "else this check shows nothing"


def queue() -> None:
    """Jobs of one name in SkyPilot's own database, as its server answers `queue_v2`: each tells its own run."""
    mine = [_submitted("r", bucket, "notus-launch --name r") for bucket in ("s3://a", "s3://b/x")]
    other = _submitted("notus-7b-dpo", None, "sky jobs launch t.yaml --env NOTUS_BUCKET=s3://c --env NOTUS_RUN=r")
    beginning = state.set_job_info_without_job_id("r", "default", "notus-launch", None, None, "someone")
    state.set_pending(beginning, 0, "r", "", "{}")
    sky.jobs.queue_v2 = lambda **asked: asked
    sky.get = lambda asked: _answer(asked["job_ids"], asked["fields"])
    for job_id, bucket in zip([*mine, other], ("s3://a/", "s3://b/x", "s3://c"), strict=True):
        found = own_job(run_identity(bucket, "r"))
        assert found is not None, bucket
        assert (found.id, found.status, found.over) == (job_id, "PENDING", False)
    with pytest.raises(UnclearJob, match=f"job {beginning} is named r"):  # it has no task yet, and may be anyone's
        own_job(run_identity("s3://d", "r"))


def _submitted(name: str, bucket: str | None, command: str) -> int:
    job_id = state.set_job_info_without_job_id(name, "default", command, None, None, "someone")
    state.set_pending(job_id, 0, name, "", "{}")
    config = task_config(load_recipe("tiny-dpo"), LADDER, run=name, bucket=bucket, submission="x" if bucket else "")
    config["secrets"], config["workdir"] = {}, str(Path.home())
    given = [] if bucket else [("NOTUS_BUCKET", "s3://c"), ("NOTUS_RUN", "r")]
    task = shown(dag_utils.load_dag_from_yaml_str(yaml_utils.dump_yaml_str(config), env_overrides=given))
    state.scheduler_set_waiting([job_id], "the server's own", task, "", None, 500)
    return int(job_id)


def _answer(ids: list[int] | None, fields: list[str]) -> tuple[list[ManagedJobRecord], int]:
    records = jobs_utils.get_managed_job_queue(job_ids=ids, fields=fields)["jobs"]
    return [ManagedJobRecord(**one) for one in records], len(records)


def credentials() -> None:
    """Of every cloud that can keep its files here, SkyPilot takes the setting, and then mounts none of them."""
    files = (".aws/credentials", ".config/gcloud/application_default_credentials.json", ".lambda_cloud/lambda_keys")
    for path in (Path.home() / name for name in files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if path.suffix else "[default]\naws_access_key_id = x\naws_secret_access_key = x\n")
    config: dict[str, Any] = {"jobs": {"controller": {"consolidation_mode": True}}}
    mounted = mounted_credentials(config)
    assert [one.cloud for one in mounted] == ["gcp", "aws", "lambda"], mounted
    assert ask_skypilot() == mounted
    assert {path for one in mounted for path in one.paths} <= {*_everything(set()).values(), *_everything(set())}
    wanted = safe_remote_identity(Path("config.yaml"), config, mounted)
    assert sorted(wanted) == ["aws", "gcp"]
    config |= {cloud: {KEY: NO_UPLOAD} for cloud in sorted(SETTABLE)}
    schema = schemas.get_config_schema()
    validator.get_schema_validator()(schema).validate(config)
    assert not {"lambda", "runpod"} & set(schema["properties"]), "they could be kept here now, too"
    assert [one.cloud for one in mounted_credentials(config)] == ["lambda"]
    excluded = {registry.CLOUD_REGISTRY[cloud] for cloud in SETTABLE}
    assert set(_everything(excluded)) == {"~/.lambda_cloud/lambda_keys"}


def _everything(excluded: set[Any]) -> dict[str, str]:
    mounts: dict[str, str] = check.get_cloud_credential_file_mounts(excluded)
    return mounts


CHECKS = {one.__name__: one for one in (names, yaml, ours, plain, queue, sent, credentials)}

if __name__ == "__main__":
    CHECKS[sys.argv[1]]()
