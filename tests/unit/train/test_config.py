from __future__ import annotations

import pytest
import yaml

from budwood.errors import BadConfig
from budwood.train.config import Budget, TrainConfig


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("10m", 600, "s"),
        ("90s", 90, "s"),
        ("1h30m", 5400, "s"),
        ("0.5h", 1800, "s"),
        ("500steps", 500, "steps"),
        ("1 step", 1, "steps"),
        ("2epochs", 2, "epochs"),
        ("0.5 epochs", 0.5, "epochs"),
    ],
)
def test_budget_reads_times_steps_and_epochs(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount, unit)  # type: ignore[arg-type]
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)


@pytest.mark.parametrize("text", ["10", "", "ten minutes", "0steps", "1.5steps", "-3epochs", "m"])
def test_budget_refuses_what_is_no_budget(text: str) -> None:
    with pytest.raises(BadConfig, match="budget is .*steps"):
        Budget.parse(text)


def test_budget_in_steps() -> None:
    assert Budget.parse("2epochs").steps(10) == 20
    assert Budget.parse("0.25epochs").steps(10) == 3
    assert Budget.parse("7steps").steps(10) == 7
    assert Budget.parse("1m").steps(10) is None


def test_round_trip_through_yaml() -> None:
    config = TrainConfig(budget="7steps", learning_rate=1e-3, precision="exact", max_length=64)
    assert TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lr": 1e-3}, {"learning_rate": 1e-3}),
        ({"num_train_epochs": 2}, {"budget": "2epochs"}),
        ({"max_steps": 60}, {"budget": "60steps"}),
        ({"max_steps": -1, "num_train_epochs": 1}, {"budget": "1epochs"}),
        ({"per_device_train_batch_size": 4}, {"batch": 4}),
        ({"micro_batch_size": 4, "gradient_accumulation_steps": 8}, {"batch": 32, "accumulate": 8}),
        ({"learning_rate": "1e-4"}, {"learning_rate": 1e-4}),
        ({"batch": 32, "gradient_accumulation_steps": 8}, {"batch": 32, "accumulate": 8}),
        ({"lr_scheduler_type": "cosine", "warmup_ratio": 0.1}, {"schedule": "cosine", "warmup": 0.1}),
        ({"max-length": 128, "max_grad_norm": 0.5}, {"max_length": 128, "clip": 0.5}),
        ({"bf16": True}, {"precision": "bf16"}),
        ({"dtype": "float32"}, {"precision": "exact"}),
    ],
)
def test_names_of_other_tools(values: dict[str, object], expected: dict[str, object]) -> None:
    assert TrainConfig.from_dict(values) == TrainConfig(**expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"learning_rat": 1}, "learning_rate"),
        ({"lr": 1, "learning_rate": 2}, "both set learning_rate"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "fp8"}, "there are: auto, bf16, exact"),
        ({"device": "gpu"}, "auto, cpu, cuda"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"batch": "8"}, "batch is '8'; it must be a whole number"),
        ({"batch": True}, "batch is True"),
        ({"batch": 4, "accumulate": 8}, "at most 4"),
        ({"learning_rate": 0}, "above 0"),
        ({"learning_rate": "fast"}, "it must be a number"),
        ({"max_length": 1}, "at least 2"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"fp16": True}, "precision: bf16"),
        ({"budget": 10}, "as text"),
        ({"version": 9}, "version"),
    ],
)
def test_mistakes_name_the_setting_and_the_way_out(values: dict[str, object], match: str) -> None:
    with pytest.raises(BadConfig, match=match):
        TrainConfig.from_dict(values)
