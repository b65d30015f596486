"""A plan as a SkyPilot managed-job task. Pure: the same input gives the same text, and SkyPilot isn't imported."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from launcher.plan import Rung
from launcher.policy.limits import Limits
from trainer.errors import EXIT_PREEMPTED
from trainer.failed_start import GAVE_UP
from trainer.recipe import Recipe

SKYPILOTS_OWN = "EAGER_NEXT_REGION"
NOTUS = "NOTUS"
"""The strategy of `launcher.sky.plugin`."""

PYTHON = "3.11"
DISK_GB = 512
"""Base weights, caches, and scratch space for the export of a 7B model, with room."""

SETUP_S = 2100
"""Of the whole set-up, the tries of its commands included. With the report of a failure it is less than the 45 min
after which a run without a step is moved."""

_SETUP = """\
set -uo pipefail
# Runs on every fresh VM, recoveries included. Each command has a time limit, and so has the whole: {total_s} s. What
# fails goes into the run's diary, which counts the failed starts in a row: 75 asks for another VM, 1 gives up, 2 is an
# error that every VM would meet. Without the diary only the NOTUS strategy is asked for another: it counts by itself.
export PATH="$HOME/.local/bin:$PATH"
log="$(mktemp)" SECONDS=0
bounded() {{ # LIMIT_S COMMAND...
  local left=$(({total_s} - SECONDS)) limit_s=$1
  shift
  [ "$left" -gt 0 ] || {{ echo "notus: no time left for: $*" | tee "$log"; return 124; }}
  timeout --kill-after=15 "$((left < limit_s ? left : limit_s))" "$@" > >(tee "$log") 2>&1
}}
step() {{ # LIMIT_S TRIES COMMAND...
  local limit_s=$1 tries=$2 code=0 try
  shift 2
  for try in $(seq "$tries"); do
    [ "$try" -eq 1 ] || sleep "$((try * try * 5))"
    code=0
    bounded "$limit_s" "$@" || code=$?
    [ "$code" -ne 0 ] || return 0
    echo "notus: exit code $code (124 = more than $limit_s s), try $try of $tries: $*" | tee -a "$log"
  done
  [ "$code" -ne 2 ] || [ "$tries" -ne 1 ] || exit 2
  report "$*"
}}
report() {{ # COMMAND
  local code=1 said=0 python="$HOME/notus-venv/bin/python"
  [ -z "${{NOTUS_PRICE_USD_H:-}}" ] || code=75
  sleep 1 # tee writes the last lines
  "$python" -P -c 'import trainer.failed_start' 2>/dev/null \\
    || timeout --kill-after=15 180 "$python" -m pip install -q -c constraints.txt '{light}'
  timeout --kill-after=15 300 "$python" -P -m trainer.failed_start "$1" "$log" || said=$?
  case "$said" in 0) code=75 ;; {gave_up}) code=1 ;; esac
  exit "$code"
}}
command -v uv >/dev/null || step 180 3 python3 -m pip install --user uv
[ -x ~/notus-venv/bin/python ] || step 180 3 uv venv --python {python} --seed ~/notus-venv
. ~/notus-venv/bin/activate
# torch first: a later resolve may otherwise swap its build
step 600 3 pip install torch==2.13.0
step 600 3 pip install -c constraints.txt '{package}'
step 300 1 python -P -m trainer.preflight "$NOTUS_RECIPE"
# its wheel from the bucket, or compiled; without it the trainer uses torch's own attention and says so
bounded {flash_s} python -P -m trainer.flash "$NOTUS_RECIPE" constraints.txt || true
"""


def setup_script(release: str | None = None, *, qlora: bool = False) -> str:
    """The set-up of a VM: installs the tree that was sent, or a release of the package."""
    extras = "trainer,qlora" if qlora else "trainer"
    named = f"notus-launch{{}}=={release}" if release else ".{}"
    return _SETUP.format(
        python=PYTHON,
        package=named.format(f"[{extras}]"),
        light=named.format(""),
        total_s=SETUP_S,
        flash_s=SETUP_S,
        gave_up=GAVE_UP,
    )


RUN = """\
. ~/notus-venv/bin/activate
exec notus-train "$NOTUS_RECIPE" --run "$NOTUS_RUN" --bucket "$NOTUS_BUCKET"
"""


GCS_KEY = "GOOGLE_SERVICE_ACCOUNT_KEY"
"""What the machines of other clouds open a gs:// bucket with: the content of a service account's key file."""
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", GCS_KEY)


def task_config(
    recipe: Recipe,
    ladder: Sequence[Rung],
    *,
    run: str,
    bucket: str | None,
    recipe_argument: str | None = None,
    strategy: str = SKYPILOTS_OWN,
    limits: Limits | None = None,
    workdir: str = ".",
    release: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The task as plain data, in the order that people read it.

    A `bucket` of None becomes a null env: SkyPilot refuses to launch until `--env NOTUS_BUCKET=...` gives it.
    Secrets are names; SkyPilot takes the values from `--secret NAME`. `limits` are for the NOTUS strategy; SkyPilot's
    own ones don't read them. `workdir` is what is sent; `release` is installed instead of it.
    `environment` is the launching user's: it may know where an S3 bucket is.
    """
    return {
        "name": run,
        "resources": {
            "disk_size": DISK_GB,
            "ordered": [_entry(rung) for rung in ladder],
            # Outside of `ordered`: SkyPilot copies it onto every entry, and refuses entries that differ.
            "job_recovery": {
                "strategy": strategy,
                "max_restarts_on_errors": 0,
                "recover_on_exit_codes": [EXIT_PREEMPTED],
            },
        },
        "envs": {
            "NOTUS_BUCKET": bucket,
            "NOTUS_RUN": run,
            "NOTUS_RECIPE": recipe_argument or recipe.name,
            **(limits or Limits(recipe.hardware.hours)).environment(),
            **_s3_settings(bucket, environment or {}),
        },
        "secrets": dict.fromkeys(needed_secrets(recipe, bucket, ladder)),
        "workdir": workdir,
        "setup": setup_script(release, qlora=recipe.needs_bitsandbytes),
        "run": RUN,
    }


def _entry(rung: Rung) -> dict[str, Any]:
    memory = {} if rung.host_gib is None else {"memory": f"{rung.host_gib}+"}
    infra = "/".join(name for name in (rung.cloud, rung.region, rung.zone) if name)
    return {"infra": infra, "accelerators": rung.gpus, "use_spot": rung.spot, **memory}


def _s3_settings(bucket: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Where an S3 bucket is: region, and the endpoint of R2, MinIO and others. Empty = AWS's own default."""
    if bucket is not None and not bucket.startswith("s3://"):
        return {}
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
    return {"AWS_REGION": environment.get("AWS_REGION", ""), "AWS_ENDPOINT_URL": endpoint}


def needed_secrets(recipe: Recipe, bucket: str | None, ladder: Sequence[Rung]) -> list[str]:
    """Names of the secrets that the run needs on the machines of `ladder`."""
    needed = ["HF_TOKEN"]
    if "wandb" in recipe.tracking:
        needed.append("WANDB_API_KEY")
    if bucket is None or bucket.startswith("s3://"):
        needed += ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    elif bucket.startswith("gs://") and any(rung.cloud != "gcp" for rung in ladder):
        needed.append(GCS_KEY)
    return [name for name in SECRETS if name in needed]


def to_yaml(config: dict[str, Any], header: str = "") -> str:
    """The task as YAML text, scripts as literal blocks."""
    literal = {
        key: LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value
        for key, value in config.items()
    }
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), _null)
    stream = io.StringIO()
    yaml.dump(literal, stream)
    return header + stream.getvalue()


def _null(representer: Any, value: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
