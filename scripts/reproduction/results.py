"""Reads what stages left behind. What is not there is None, never a guess."""

import json
from pathlib import Path

from .stages import read_json


def json_or_none(path):
    return read_json(path) if Path(path).exists() else None


def lines(path):
    """A line that was cut off by a crash is left out."""
    out = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            continue
    return out


class Needles:
    """Scores of one grid, over all of its haystacks."""

    def __init__(self, folder):
        self.scores = {}  # (length, depth): list
        self.folders = sorted(p.parent for p in Path(folder).glob("*/results.jsonl"))
        for place in self.folders:
            for result in lines(place / "results.jsonl"):
                self.scores.setdefault((result["length"], round(result["depth"], 6)), []).append(result["score"])

    def __bool__(self):
        return bool(self.scores)

    def lengths(self):
        return sorted({length for length, _ in self.scores})

    def of(self, length=None, depth=None):
        return [score for (its_length, its_depth), scores in self.scores.items() for score in scores
                if length in (None, its_length) and depth in (None, its_depth)]

    def accuracy(self, length=None, depth=None):
        scores = self.of(length, depth)
        return sum(scores) / len(scores) if scores else None

    def worst_length(self):
        return min(self.accuracy(length) for length in self.lengths())

    def worst_cell(self):
        """(accuracy, length, depth)"""
        return min((sum(scores) / len(scores), *cell) for cell, scores in self.scores.items())

    def fewest(self):
        """Keys of the cell, a length and a depth, that has the fewest."""
        return min(len(scores) for scores in self.scores.values())


class Loss:
    """Bits per byte of one model, the last one of its command."""

    def __init__(self, path):
        json_text = json_or_none(path)
        self.model = json_text["models"][-1] if json_text else None

    def __bool__(self):
        return self.model is not None

    def bits(self):
        return self.model["bits_per_byte"] if self.model else None

    def buckets(self):
        """[(begin, end, bits per byte, its standard error)]"""
        if self.model is None:
            return []
        return [(b["begin"], b["end"], b["bits_per_byte"], b["bits_per_byte_error"]) for b in self.model["buckets"]]

    def over(self, begin, end):
        """Bits per byte of whole buckets in [begin, end)."""
        chosen = [b for b in self.model["buckets"] if b["begin"] >= begin and b["end"] <= end] if self.model else []
        size = sum(b["bytes"] for b in chosen)
        return sum(b["bits_per_byte"] * b["bytes"] for b in chosen) / size if size else None


class Training:
    """The run that made a model, if it was trained."""

    def __init__(self, folder):
        metrics = Path(folder) / "run" / "metrics.jsonl"
        self.steps = lines(metrics) if metrics.exists() else []
        self.picture = Path(folder) / "run" / "loss.svg"

    def last(self, name):
        return next((step[name] for step in reversed(self.steps) if step.get(name) is not None), None)
