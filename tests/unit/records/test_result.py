from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from budwood.errors import BadCheckpoint
from budwood.records import Inference, Memory, Parameters, Quality, Result, Score, Speed, Timing
from budwood.records.files import read_json, write_json

TIMING = Timing(batch=1, prompt_tokens=64, prefill_s=0.1, per_token_s=0.01, how="median of 5 repeats")
SCORE = Score(name="perplexity", value=4.0, low=3.5, high=4.5, n=20, unit="perplexity")
WHOLE = Result(
    parameters=Parameters(trained_count=10, trained_bytes=40, base_count=1000, stored_bytes=90),
    memory=Memory(peak_bytes=5, how="VmHWM", high_water_bytes=9, floor_bytes=4),
    speed=Speed(
        tokens_per_s=100.0,
        learned_tokens_per_s=40.0,
        total_s=3.0,
        steps=2,
        tokens=300,
        learned_tokens=120,
        how="mean of all 2 steps, warm-up included",
        threads=2,
    ),
    quality=(Quality(score=SCORE, base=SCORE), Quality(score=SCORE)),
    inference=Inference(timings=(TIMING,), extra_weight_bytes=7, mergeable=True, merged_timings=(TIMING,)),
)


@pytest.mark.parametrize("result", [Result(), WHOLE, Result(quality=(Quality(score=SCORE),))])
def test_round_trip(tmp_path: Path, result: Result) -> None:
    write_json(tmp_path / "result.json", result.to_dict())
    assert Result.from_dict(read_json(tmp_path / "result.json")) == result


def test_the_file_says_null_for_what_was_not_measured(tmp_path: Path) -> None:
    data = Result().to_dict()
    assert {name: data[name] for name in ("parameters", "memory", "speed", "inference")} == dict.fromkeys(
        ("parameters", "memory", "speed", "inference")
    )
    inference = WHOLE.to_dict()["inference"]
    assert inference["base_timings"] is None and inference["extra_cache_bytes_per_row"] == 0


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    score = Score(name="loss", value=math.nan, low=-math.inf, high=math.inf, n=1, unit="nats per token")
    write_json(tmp_path / "result.json", Result(quality=(Quality(score=score),)).to_dict())
    read = Result.from_dict(read_json(tmp_path / "result.json")).quality[0].score
    assert math.isnan(read.value) and (read.low, read.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"version": 1', '"version": 7', "has version 7"),
        ('"peak_bytes"', '"peek_bytes"', "memory has peek_bytes"),
        ('"how": "VmHWM", ', "", "memory is damaged"),
        ('"tokens_per_s": 100.0', '"tokens_per_s": "fast"', "speed is damaged"),
        ('"memory": {', '"memory": 3, "x": {', "memory is damaged"),
        ('"score": {', '"score": null, "x": {', "a score is null"),
    ],
)
def test_damage_is_named(old: str, new: str, words: str) -> None:
    text = json.dumps(WHOLE.to_dict())
    assert old in text
    with pytest.raises(BadCheckpoint, match=words) as caught:
        Result.from_dict(json.loads(text.replace(old, new, 1)), where="runs/x/result.json")
    assert "runs/x/result.json" in str(caught.value)


def test_share_and_metric() -> None:
    assert WHOLE.parameters is not None and WHOLE.parameters.share == pytest.approx(0.01)
    assert WHOLE.quality[0].metric == "perplexity"
    assert str(SCORE) == "perplexity 4 [3.5, 4.5] (n=20)"
