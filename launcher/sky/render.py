"""Render a plan as a SkyPilot managed-job task, deterministically and without importing SkyPilot.

Pure, except for the user's AWS profile, which is read if an `environment` is given.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.resolver import implicit_resolvers
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString, SingleQuotedScalarString

from checkpoints.storage.backend import backend_of
from launcher.planning.plan import Candidate
from launcher.policy.limits import Limits
from launcher.sky.jobs import LAUNCH, SUBMISSION
from trainer.config.recipe import Recipe
from trainer.errors import EXIT_PREEMPTED, SET_UP_GAVE_UP
from trainer.supervisor.single_node import NODES

SKYPILOTS_OWN = "EAGER_NEXT_REGION"
NOTUS = "NOTUS"
"""The strategy of `launcher.sky.plugin`."""

_PLAIN = re.compile(r"[A-Za-z0-9.~/_-][A-Za-z0-9 .,:/_=+@%~-]*(?<![ :])", re.ASCII)
"""Strings that need no quotes, unless they look like a number, a date, a boolean or null."""
_INLINE = re.compile(r"[ -~]*", re.ASCII)
_BLOCK = re.compile(r"(?:[!-~][ -~]*\n)(?:[ -~]*\n)*(?:[ -~]*[!-~]\n)|[!-~][ -~]*\n", re.ASCII)
"""Scripts: whole ASCII lines, without empty ones at the beginning or end."""
LINE = 1 << 20
"""Line length in characters, so that no text is wrapped: a script's lines must not be."""

PYTHON = "3.11"
DISK_GB = 512
"""Base weights, caches, and scratch space for the export of a 7B model, with a margin."""

SETUP_S = 2100
"""Time limit of the whole set-up, including retries. With the report of a failure it is below the 45 min after which a
run without a step is moved."""

_SETUP = """\
if [ "${{{nodes}:-1}}" -gt 1 ] 2>/dev/null; then
  echo "notus: the task asks for ${nodes} nodes, and a run has one: leave num_nodes out, and ask for a larger node" >&2
  exit 2 # before anything is installed: every node is paid meanwhile
fi
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
  timeout --kill-after=15 60 "$python" -P -c 'import trainer.failed_start' 2>/dev/null \\
    || timeout --kill-after=15 180 "$python" -P -m pip install -q -c constraints.txt '{light}'
  timeout --kill-after=15 300 "$python" -P -m trainer.failed_start "$1" "$log" || said=$?
  case "$said" in 0) code=75 ;; {gave_up}) code=1 ;; esac
  exit "$code"
}}
# from /, or a pip.py in the sent folder would be run; this python may be older than -P, and -I rules out --user
command -v uv >/dev/null || step 180 3 env --chdir=/ python3 -m pip install --user uv
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
    """The set-up script of a VM: installs the tree that was sent, or the wheel in it.

    It never installs our package name from an index, where others could register it.
    """
    extras = "trainer,qlora" if qlora else "trainer"
    named = f"./{release}{{}}" if release else ".{}"
    return _SETUP.format(
        python=PYTHON,
        package=named.format(f"[{extras}]"),
        light=named.format(""),
        total_s=SETUP_S,
        flash_s=SETUP_S,
        gave_up=SET_UP_GAVE_UP,
        nodes=NODES,
    )


RUN = """\
. ~/notus-venv/bin/activate
exec notus-train "$NOTUS_RECIPE" --run "$NOTUS_RUN" --bucket "$NOTUS_BUCKET"
"""


ANY_BUCKET = "s3://any"
"""Example task files name no bucket; they have the settings of S3."""
WANDB_SETTINGS = ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL", "WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_MODE")
HUB_SETTINGS = ("HF_ENDPOINT",)
"""Settings that are passed on from the launching user's environment if set (docs/how-to/real-cloud.md)."""


def task_config(
    recipe: Recipe,
    ladder: Sequence[Candidate],
    *,
    run: str,
    bucket: str | None,
    recipe_argument: str | None = None,
    strategy: str = SKYPILOTS_OWN,
    limits: Limits | None = None,
    workdir: str = ".",
    release: str | None = None,
    environment: Mapping[str, str] | None = None,
    submission: str = "",
    launch: int = 0,
) -> dict[str, Any]:
    """The task as plain data, in reading order.

    A `bucket` of None becomes a null env: SkyPilot refuses to launch until `--env NOTUS_BUCKET=...` sets it. Secrets
    are names; SkyPilot takes the values from `--secret NAME`. `limits` are for the NOTUS strategy; SkyPilot's own
    strategies ignore them. `workdir` is the folder to send; `release` is the wheel in it to install, else the tree is
    installed. `environment` is the launching user's: it, or the AWS profile that it names, may contain the location of
    an S3 bucket. `submission` and `launch` identify the launch that a job came from; 0 = not numbered.
    """
    return {
        "name": run,
        "resources": {
            "disk_size": DISK_GB,
            "ordered": [_entry(candidate) for candidate in ladder],
            # Outside of `ordered`: SkyPilot copies it to every entry, and refuses entries that differ.
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
            **_bucket_settings(bucket, environment),
            **_trackers_settings(recipe, environment or {}),
            **({SUBMISSION: submission} if submission else {}),
            **({LAUNCH: str(launch)} if launch else {}),
        },
        "secrets": dict.fromkeys(needed_secrets(recipe, bucket, ladder)),
        "workdir": workdir,
        "setup": setup_script(release, qlora=recipe.needs_bitsandbytes),
        "run": RUN,
    }


def _entry(candidate: Candidate) -> dict[str, Any]:
    memory = {} if candidate.host_gib is None else {"memory": f"{candidate.host_gib}+"}
    infra = "/".join(name for name in (candidate.cloud, candidate.region, candidate.zone) if name)
    return {"infra": infra, "accelerators": candidate.gpus, "use_spot": candidate.spot, **memory}


def _bucket_settings(bucket: str | None, environment: Mapping[str, str] | None) -> dict[str, str]:
    """Settings for the bucket's location. Example task files have those of S3."""
    backend = backend_of(bucket or ANY_BUCKET)
    return backend.settings(environment) if backend else {}


def clouds_of(ladder: Sequence[Candidate]) -> set[str]:
    """The clouds that a task may use."""
    return {candidate.cloud for candidate in ladder}


def _trackers_settings(recipe: Recipe, environment: Mapping[str, str]) -> dict[str, str]:
    """Tracker and Hub settings from the user's environment; nothing else of it is passed on."""
    names = (*HUB_SETTINGS, *(WANDB_SETTINGS if "wandb" in recipe.tracking else ()))
    return {name: environment[name] for name in names if environment.get(name)}


def needed_secrets(recipe: Recipe, bucket: str | None, ladder: Sequence[Candidate]) -> list[str]:
    """Names of the secrets that the run needs on the machines of `ladder`."""
    needed = ["HF_TOKEN"]
    if "wandb" in recipe.tracking:
        needed.append("WANDB_API_KEY")
    if (backend := backend_of(bucket or ANY_BUCKET)) is not None:
        needed += backend.secret_names(clouds_of(ladder))
    return needed


def to_yaml(config: dict[str, Any], header: str = "") -> str:
    """The task as YAML text, scripts as literal blocks.

    SkyPilot reads YAML 1.1, in which `on`, `1e5`, `017` or `2026-11-28` are not strings. A string that any reader could
    take for something else is quoted. A test compares with SkyPilot's own reader.
    """
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = LINE
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), _null)
    stream = io.StringIO()
    yaml.dump(_quoted(config), stream)
    return header + stream.getvalue()


def _quoted(value: Any) -> Any:
    """A copy with each string quoted as needed to be read back unchanged."""
    if isinstance(value, Mapping):
        return {_quoted(name): _quoted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if _BLOCK.fullmatch(value):
        return LiteralScalarString(value)
    if _PLAIN.fullmatch(value) and not _is_other(value):
        return value
    return SingleQuotedScalarString(value) if _INLINE.fullmatch(value) else DoubleQuotedScalarString(value)


def _is_other(text: str) -> bool:
    """Would a reader of YAML 1.1 or 1.2 take it for something other than a string?"""
    return any(pattern.match(text) for _, _, pattern, _ in implicit_resolvers)


def _null(representer: Any, value: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
