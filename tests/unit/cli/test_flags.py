"""The flags of every verb, frozen: growing this list is a visible change."""

from __future__ import annotations

from dataclasses import fields

import pytest

from budwood.cli.app import VERBS, build
from budwood.cli.options import Machine, Training
from budwood.train.config import TrainConfig

TALK = "--json --quiet --verbose"
MACHINE = "--config --seed --device --precision --batch --offline"
ALSO_MACHINE = "--columns --max-length --template --trust-remote-code --allow-pickle"
READING = "--columns --offline"
SHOWN: dict[str, str] = {
    "demo": f"--budget --out --offline {TALK}",
    "eval": f"--model --split --metric --answers --out --force {MACHINE} {TALK}",
    "try": f"--prompt --rows --file --model --max-new-tokens --temperature {MACHINE} {TALK}",
    "merge": f"--out --dtype --model --force {MACHINE} {TALK}",
    "compose": f"--out --how --weights --rank --density --sign --head --model --seed --device --offline --force {TALK}",
    "export": f"--to --out --model --force {MACHINE} {TALK}",
    "search": f"--method --budget --memory --out --resume {MACHINE} {TALK}",
    "compare": f"--method --seeds --budget --memory --out --resume {MACHINE} {TALK}",
    "report": f"--to --out {TALK}",
    "train": f"--method --budget --out --resume --dry-run --force {MACHINE} {TALK}",
    "distill": f"--method --budget --out --resume --loss --top-k {MACHINE} {TALK}",
    "shrink": f"--to --min-quality --cut --recover --out --resume {MACHINE} {TALK}",
    "inspect": f"--method --sites --offline --trust-remote-code {TALK}",
    "methods": TALK,
    "data show": f"--rows --split --model --max-length {READING} {TALK}",
    "data check": f"{READING} {TALK}",
    "data dedup": f"--out --force {READING} {TALK}",
    "data split": f"--out --shares --group --seed --force {READING} {TALK}",
    "runs ls": f"--root {TALK}",
    "runs show": f"--root {TALK}",
    "assets ls": TALK,
    "assets get": f"--offline {TALK}",
    "assets clean": TALK,
    "doctor": f"--offline {TALK}",
}
TRAINING = (
    "--on --task --pattern --verbalizer --accumulate --learning-rate --rates --rate-steps --schedule --warmup "
    "--weight-decay --clip --gradient-checkpointing --pack --no-pack "
    "--group-by-length --no-group-by-length --eval-every --eval-rows "
    f"--test-rows --save-every --proof-steps --timed-batches --split-seed --samples {ALSO_MACHINE}"
)
HIDDEN: dict[str, str] = {
    **dict.fromkeys(("merge", "export"), ALSO_MACHINE),
    "eval": f"--on --with {ALSO_MACHINE}",
    "try": f"--on {ALSO_MACHINE}",
    "compose": "--trust-remote-code",
    "train": TRAINING,
    "search": f"--dry-run --force {TRAINING}",
    "compare": f"--dry-run --force --search --no-search --ray {TRAINING}",
    "distill": "--dry-run --force --temperature --kd-weight --ce-weight --skew --beta --hidden-weight --hidden "
    "--attention-weight --relation-weight --layer-map --tail --answers --on-policy --max-new-tokens "
    f"{TRAINING}",
    "shrink": "--method --budget --dry-run --force --to-params --latency --step --score --rows --ridge --tune "
    f"{TRAINING}",
}
MOST_FLAGS = 15


def flags(verb: str, *, shown: bool) -> set[str]:
    """The long flags of a verb, positional arguments left out."""
    app = build()
    for word in verb.split():
        app = app[word]
    return {
        name
        for argument in app.assemble_argument_collection(default_parameter=build().default_parameter)
        if not argument.children and bool(argument.show) is shown
        for name in (*argument.names, *argument.negatives)
        if name.startswith("--")
    }


def test_the_list_names_every_verb() -> None:
    assert {verb.split()[0] for verb in SHOWN} == set(VERBS)


@pytest.mark.parametrize("verb", SHOWN)
def test_flags_in_the_help(verb: str) -> None:
    found = flags(verb, shown=True)
    assert found == set(SHOWN[verb].split())
    assert len(found) <= MOST_FLAGS


@pytest.mark.parametrize("verb", SHOWN)
def test_flags_beside_the_help(verb: str) -> None:
    assert flags(verb, shown=False) == set(HIDDEN.get(verb, "").split())


def test_every_setting_of_a_run_is_a_flag_of_the_same_kind() -> None:
    ours = {field.name: str(field.type) for kind in (Machine, Training) for field in fields(kind)}
    for field in fields(TrainConfig):
        assert str(field.type).removesuffix(" | None") in ours[field.name], field.name


@pytest.mark.parametrize("verb", SHOWN)
def test_every_flag_in_the_help_says_what_it_does(verb: str) -> None:
    app = build()
    for word in verb.split():
        app = app[word]
    for argument in app.assemble_argument_collection(parse_docstring=True):
        if argument.show and not argument.children:
            assert argument.parameter.help, f"{verb}: {argument.names}"
