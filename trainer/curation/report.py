"""The report of a curation: counts, how often the mean and the overall score disagree, and histograms."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from trainer.curation.binarize import CONTAMINATED, LeftOut, Pair, Rules, from_source, overall_disagrees
from trainer.curation.ultrafeedback import Record

REPORT = "report.json"
BINS_A_POINT = 4
"""Bins per point: a mean of four whole ratings is a multiple of a quarter of a point."""


class Report:
    """Counts, updated one record at a time."""

    def __init__(self) -> None:
        self.records = 0
        self.pairs = 0
        self.left_out: Counter[str] = Counter()
        self.oddities: Counter[str] = Counter()
        self.unrated: Counter[str] = Counter()
        self.comparable = self.disagree = 0
        self.chosen: Counter[float] = Counter()
        self.rejected: Counter[float] = Counter()
        self.margins: Counter[float] = Counter()
        self.sources: Counter[str] = Counter()
        self.chosen_models: Counter[str] = Counter()

    def add(self, record: Record, made: Pair | LeftOut) -> None:
        """Count a record and its result."""
        self.records += 1
        self.oddities.update(record.oddities)
        self.unrated.update(aspect for answer in record.completions for aspect in answer.unrated)
        if isinstance(made, LeftOut):
            self.left_out[made.reason] += 1
            return
        self.pairs += 1
        disagrees = overall_disagrees(record)
        self.comparable += disagrees is not None
        self.disagree += bool(disagrees)
        self.chosen[_bin(made.chosen_avg_rating)] += 1
        self.rejected[_bin(made.rejected_avg_rating)] += 1
        self.margins[_bin(made.chosen_avg_rating - made.rejected_avg_rating)] += 1
        self.sources[made.source] += 1
        self.chosen_models[made.chosen_model] += 1

    def as_dict(self, rules: Rules) -> dict[str, Any]:
        """The report for JSON: the same data and rules give the same text."""
        return {
            "records": self.records,
            "pairs": self.pairs,
            "left_out": dict(sorted(self.left_out.items())),
            "matched_nothing": self._matched_nothing(rules),
            "answers_left_out": dict(sorted(self.oddities.items())),
            "answers_by_aspect_not_rated": dict(sorted(self.unrated.items())),
            "mean_disagrees_with_overall_score": self.disagree,
            "comparable_with_overall_score": self.comparable,
            "chosen_rating": _sorted(self.chosen),
            "rejected_rating": _sorted(self.rejected),
            "margin": _sorted(self.margins),
            "sources": dict(sorted(self.sources.items())),
            "chosen_models": dict(sorted(self.chosen_models.items())),
            "rejected": rules.rejected,
            "ratings": rules.ratings,
            "seed": rules.seed,
        }

    def _matched_nothing(self, rules: Rules) -> list[str]:
        """Options to leave something out that matched nothing."""
        sources = [
            f"--drop-source {name}" for name in sorted(rules.dropped_sources) if not self.left_out[from_source(name)]
        ]
        listed = ["--contamination"] if rules.contaminated and not self.left_out[CONTAMINATED] else []
        return sources + listed

    def write(self, folder: Path, rules: Rules) -> None:
        """Write report.json and histograms.png."""
        text = json.dumps(self.as_dict(rules), indent=2, ensure_ascii=False) + "\n"
        (folder / REPORT).write_text(text, encoding="utf-8")
        if self.pairs:
            self._draw(folder / "histograms.png")

    def _draw(self, path: Path) -> None:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot

        width = 1 / BINS_A_POINT
        figure, (ratings, margins) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        for label, counts, shift in (("chosen", self.chosen, 0.0), ("rejected", self.rejected, width / 2)):
            places = [value + shift for value in counts]
            ratings.bar(places, list(counts.values()), width=width / 2, align="edge", label=label)
        ratings.set_xlabel("mean of the four ratings")
        ratings.set_ylabel("pairs")
        ratings.legend()
        margins.bar(list(self.margins), list(self.margins.values()), width=width * 0.9, align="edge")
        margins.set_xlabel("margin between chosen and rejected")
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def _bin(value: float) -> float:
    return int(value * BINS_A_POINT + 1e-9) / BINS_A_POINT


def _sorted(counts: Counter[float]) -> dict[str, int]:
    return {f"{value:.2f}": counts[value] for value in sorted(counts)}
