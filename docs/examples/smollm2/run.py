"""Train SmolLM2-135M-Instruct on real pairs on this machine, killed three times, and show what came of it.

    python docs/examples/smollm2/run.py PAIRS.jsonl FOLDER [full] [lora]

Each method takes about an hour on 2 cores: once with the kills, once without, to compare. Into FOLDER: the bucket with
both runs, the exported models, curves.png and figures.json. What is finished isn't done again.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from checkpoints.run_log.event_kinds import Compared, Evaluated, Preempted
from checkpoints.run_log.event_log import of_kind, read_events
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import open_run

HERE = Path(__file__).parent
KILLS, SEED = "3", "11"
WINDOW = 8
"""Steps of the moving mean: a step has 4 pairs only."""
QUESTIONS = ("What is the capital of France?", "Give me three tips for better sleep.")


def main(pairs: Path, folder: Path, methods: list[str]) -> None:
    bucket = folder / "bucket"
    bucket.mkdir(parents=True, exist_ok=True)
    shutil.copy(pairs, folder / "pairs.jsonl")
    for method in methods:
        train(method, folder, bucket)
    told = {method: history(method, bucket) for method in methods}
    figures = {method: figures_of(told[method]) for method in methods}
    draw(told, folder / "curves.png")
    for method in methods:
        figures[method]["answers"] = answers(export(method, folder, bucket))
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def train(method: str, folder: Path, bucket: Path) -> None:
    """With kills and without, compared bit for bit."""
    if any(event.kind == "compared" for event in read_events(open_run(str(bucket), f"smollm2-{method}"))):
        return
    recipe = shutil.copy(HERE / f"{method}.yaml", folder)
    command = ["notus-launch", "--cloud", "local", "--recipe", recipe, "--bucket", str(bucket)]
    command += ["--name", f"smollm2-{method}", "--preempt", KILLS, "--seed", SEED]
    subprocess.run(command, check=True)


def history(method: str, bucket: Path) -> dict[str, Any]:
    """Steps, losses and margins of the run and of its twin, the steps where it was killed, and the evaluations."""
    run, twin = (open_run(str(bucket), f"smollm2-{method}{end}") for end in ("", "-uninterrupted"))
    events = read_events(run)
    return {
        "run": steps_of(run),
        "twin": steps_of(twin),
        "compared": of_kind(events, Compared)[-1][1].wire(),
        "kills": [preempted.step for _, preempted in of_kind(events, Preempted)],
        "evaluations": {found.step: found.metrics for _, found in of_kind(events, Evaluated)},
    }


def steps_of(store: Any) -> dict[str, list[float]]:
    """Loss and margin by step: the mean over the ranks, of a step that was redone the last one."""
    losses: dict[tuple[int, int], float] = {}
    rewards: dict[int, dict[str, Any]] = {}
    for line in read_metrics(store):
        losses[line.step, line.rank] = line.values["loss"]
        if line.rank == 0:
            rewards[line.step] = line.values
    steps = sorted(rewards)
    ranks = sorted({rank for _, rank in losses})
    return {
        "loss": [statistics.mean(losses[step, rank] for rank in ranks) for step in steps],
        "margin": [rewards[step]["rewards/margins"] for step in steps],
        "accuracy": [rewards[step]["rewards/accuracies"] for step in steps],
        "seconds": [rewards[step]["seconds"] for step in steps],
        "tokens_per_second": [rewards[step]["tokens_per_second"] for step in steps],
    }


def figures_of(told: dict[str, Any]) -> dict[str, Any]:
    """The run in figures."""
    run, quarter = told["run"], len(told["run"]["loss"]) // 4
    return {
        "steps": len(run["loss"]),
        "killed_at": told["kills"],
        "compared": told["compared"],
        "first_quarter": {
            name: round(statistics.mean(run[name][:quarter]), 4) for name in ("loss", "margin", "accuracy")
        },
        "last_quarter": {
            name: round(statistics.mean(run[name][-quarter:]), 4) for name in ("loss", "margin", "accuracy")
        },
        "evaluations": {
            step: {
                name: round(metrics[name], 4)
                for name in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")
            }
            for step, metrics in told["evaluations"].items()
        },
        "seconds_per_step": round(statistics.median(told["twin"]["seconds"]), 1),
        "tokens_per_second": round(statistics.median(told["twin"]["tokens_per_second"]), 1),
    }


def draw(told: dict[str, dict[str, Any]], path: Path) -> None:
    """Loss above, reward margin below, a column for each method."""
    figure, axes = plt.subplots(2, len(told), figsize=(5.5 * len(told), 6), sharex=True, squeeze=False)
    for column, (method, one) in enumerate(told.items()):
        for row, (name, label) in enumerate((("loss", "loss"), ("margin", "reward margin"))):
            axis = axes[row][column]
            values = one["run"][name]
            steps = range(1, len(values) + 1)
            axis.plot(steps, values, ".", color="0.7", label="each step")
            axis.plot(steps, moving_mean(one["twin"][name]), color="tab:orange", lw=4, alpha=0.5, label="never killed")
            axis.plot(steps, moving_mean(values), color="tab:blue", lw=1.2, label="killed three times")
            evaluated = {
                step: metrics[f"eval_{'loss' if name == 'loss' else 'rewards/margins'}"]
                for step, metrics in one["evaluations"].items()
            }
            axis.plot(list(evaluated), list(evaluated.values()), "D", color="tab:green", label="held-out pairs")
            for kill in one["kills"]:
                axis.axvline(kill, color="tab:red", lw=0.8, ls=":")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        axes[0][column].set_title({"full": "all weights, ZeRO-3", "lora": "LoRA, DDP"}[method])
        axes[1][column].set_xlabel("step (dotted: killed)")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def moving_mean(values: list[float]) -> list[float]:
    """Of the last `WINDOW` values, of fewer at the beginning."""
    return [statistics.mean(values[max(0, end - WINDOW) : end]) for end in range(1, len(values) + 1)]


def export(method: str, folder: Path, bucket: Path) -> Path:
    """The finished model as a folder; adapters merged."""
    out = folder / f"model-{method}"
    if not out.exists():
        command = ["notus-train", "export", f"smollm2-{method}", "--bucket", str(bucket), "--out", str(out)]
        subprocess.run([*command, *(["--merge"] if method == "lora" else [])], check=True)
    return out


def answers(model_folder: Path) -> dict[str, str]:
    """What the model says, greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    said = {}
    for question in QUESTIONS:
        turns = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**asked, max_new_tokens=80, do_sample=False)
        said[question] = tokenizer.decode(output[0][asked["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return said


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or ["full", "lora"])
