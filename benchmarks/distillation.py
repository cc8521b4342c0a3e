"""A student with half the blocks of its teacher, with and without the teacher's word, at equal steps and data.

    python benchmarks/distillation.py TEACHER DATA [--student layers=0.5] [--steps 60] [--rate 1e-4] [--batch 8]

TEACHER: a model or a run that knows the data already.  DATA: a file or a folder of splits.
Three runs of the same student, made of the teacher: as it was cut (0 steps), on the data's own targets, and with the
teacher beside them. One JSON line each, with the teacher's score; intervals are over rows, not over seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from budwood.distill.finish import teacher_scores
from budwood.distill.run import distill
from budwood.train.run import Run, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data", type=Path)
    parser.add_argument("--student", default="layers=0.5")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--test-rows", type=int, default=200)
    asked = parser.parse_args()
    settings = {"eval_every": 0, "test_rows": asked.test_rows, "batch": asked.batch, "learning_rate": asked.rate}
    settings |= {"precision": "exact", "samples": 0}
    budget = f"{asked.steps}steps"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        taught = distill(asked.teacher, asked.student, asked.data, budget=budget, config=settings, out=out / "taught")
        told("data and teacher", taught)
        student = taught.manifest.model
        alone = train(student, asked.data, method="full", budget=budget, config=settings, out=out / "alone")
        told("data alone", alone)
        scores = {name: round(score.value, 4) for name, score in teacher_scores(taught.folder).items()}
        print(json.dumps({"learns from": "the teacher itself", **scores}), flush=True)


def told(what: str, run: Run) -> None:
    """Print one line."""
    result = run.result
    assert result is not None
    assert result.parameters is not None
    assert result.speed is not None
    found = next(q for q in result.quality if q.metric in ("perplexity", "accuracy"))
    line = {"learns from": what, found.metric: round(found.score.value, 4)}
    line |= {"interval": [round(found.score.low, 4), round(found.score.high, 4)], "n": found.score.n}
    line |= {"before": round(found.base.value, 4)} if found.base else {}
    line |= {"parameters": result.parameters.base_count, "steps": result.speed.steps}
    line |= {"train_s": round(result.speed.total_s)}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
