"""Comparisons as values, made up: for tests of what is said and drawn of them."""

from __future__ import annotations

from dataclasses import replace
from math import exp

from budwood.records import Contender, RateProbe, RateTrial
from budwood.report.table import Estimate, Method, Metric, Pick, Point, Sample, Table

MIB = 2**20
EVIL = "<script>alert('x')</script> & \"<b>bold</b>\""
ACCURACY = Metric(name="accuracy", higher_is_better=True, difference="points of accuracy")
PERPLEXITY = Metric(name="perplexity", higher_is_better=False, difference="nats per token")

# label, quality, trained parameters, peak MiB, tokens/s, seconds, prompt ms, token ms, mergeable, learning rate
CLASSIFIERS = (
    ("full", 0.894, 4_386_178, 310, 4200, 96.0, 4.1, True, 3e-5),
    ("lora", 0.891, 49_408, 190, 5600, 71.0, 4.2, True, 2e-3),
    ("lora:rank=16,alpha=32", 0.889, 197_122, 196, 5500, 74.0, 4.2, True, 5e-4),
    ("houlsby", 0.888, 102_530, 205, 5100, 80.0, 5.0, False, 1e-3),
    ("ia3", 0.872, 3_330, 178, 5900, 68.0, 4.1, True, 1e-2),
    ("bitfit", 0.869, 9_218, 171, 6400, 62.0, 4.1, True, 3e-3),
    ("prefix", 0.861, 82_432, 214, 4900, 83.0, 5.6, False, 5e-3),
    ("prompt", 0.79, 2_562, 232, 4400, 92.0, 6.8, False, 5e-2),
)  # fmt: skip


def classification(*, seeds: int = 3) -> Table:
    """Eight methods that finished, one that was refused, one that failed."""
    methods = [_classifier(place, seeds) for place in range(len(CLASSIFIERS))]
    base = Method(
        label="base",
        contender=Contender(label="base", method={"base": {}}),
        seeds=(0,),
        folders=("runs/base",),
        quality=Estimate(value=0.512, low=0.468, high=0.556),
        by_seed=(0.512,),
        below_best=Estimate(value=-0.382, low=-0.44, high=-0.32),
        trained_count=0,
        prefill_s=0.0041,
        answer_s=0.0041,
        mergeable=True,
        extra_weight_bytes=0,
    )
    refused = Method(
        label="compacter",
        contender=Contender(
            label="compacter", method={"compacter": {}}, verdict="refused", why="no reduction divides 130; use 128"
        ),
    )
    failed = Method(
        label="adapterp",
        contender=Contender(label="adapterp", method={"adapterp": {}}, verdict="ready"),
        failures=("seed 0: the loss was nan at step 7", "seed 1: not run, as the first failed"),
    )
    return Table(
        title="demo-encoder on SST-2: ten methods",
        model="demo-encoder",
        data="demo-sst2",
        task="classification",
        budget="120 steps",
        metric=ACCURACY,
        rows_scored=500,
        methods=(base, *methods, refused, failed),
        limits={},
        samples=tuple(_sample(number) for number in range(6)),
        weaknesses=(
            "500 test rows: differences under about 3 points of accuracy cannot be seen.",
            "One machine, two threads: times and memory differ elsewhere.",
        ),
        notes=(
            ("Quality", "Accuracy on 500 test rows; rows and seeds are drawn anew 1,000 times."),
            ("Memory", "High-water mark of a fresh process, less 412 MiB for Python and its libraries."),
        ),
        repeat=("budwood compare demo-encoder demo-sst2 --budget 120steps --seeds 3",),
        licences=(("demo-encoder", "Apache-2.0"), ("demo-sst2", "unknown")),
        status="finished",
        waiting=(),
    )


def language(*, methods: int = 7) -> Table:
    """The same for a model that writes: perplexity, long answers, times per token."""
    table = classification(seeds=1)
    tuned = [method for method in table.methods if method.seeds]
    tuned = [_writer(method, place) for place, method in enumerate(tuned)][: methods + 1]
    return replace(
        table,
        title="demo-lm on demo-e2e",
        model="demo-lm",
        data="demo-e2e",
        task="causal-lm",
        metric=PERPLEXITY,
        methods=tuple(tuned),
        samples=tuple(_writing(number, [method.label for method in tuned]) for number in range(5)),
        weaknesses=("One seed: what another order of the data would change is not known.",),
    )


def crowd(methods: int = 20, samples: int = 24, letters: int = 4000) -> Table:
    """As much of everything as a comparison may hold, with texts that have to be escaped."""
    table = language()
    model = table.methods[1]
    assert model.quality is not None
    many = [
        replace(
            model,
            label=f"method-number-{place}:size={2**place}",
            quality=_shifted(model.quality, 0.02 * place),
            trained_count=1000 * 2**place,
            peak_bytes=(150 + 7 * (place * 7 % 20)) * MIB,
            train_s=60.0 + 5 * (place * 3 % 20),
            is_best=place == 0,
            failures=(EVIL * 20,),
        )
        for place in range(methods)
    ]
    labels = [method.label for method in many]
    texts = [(EVIL * (letters // len(EVIL)))[:letters] + f" {number}" for number in range(methods)]
    answers = [
        Sample(prompt=texts[0], reference=texts[1], answers=dict(zip(labels, texts, strict=True)), disagreement=1.0)
        for _ in range(samples)
    ]
    return replace(table, methods=(table.methods[0], *many), samples=tuple(answers), notes=((EVIL, EVIL * 50),) * 8)


CHEAPEST = {"memory": "lora", "training time": "lora", "answer time": "full", "stored size": "lora"}


def pick(table: Table) -> Pick:
    """A recommendation that fits `classification` and `language`."""
    tied = [method.label for method in table.methods if method.may_be_best or method.is_best]
    return Pick(
        label="lora",
        headline="Use lora: nothing is better that this data can show, and it stores 200 KiB.",
        reasons=(
            "lora reaches 89.1 % [86.1, 91.5] on 500 test rows, the untuned model 51.2 %.",
            "full, lora and houlsby cannot be told apart; of these, lora trains fastest.",
        ),
        tied=tuple(tied),
        cheapest={name: label for name, label in CHEAPEST.items() if label in {one.label for one in table.methods}},
        over_limits={},
    )


def _shifted(estimate: Estimate, by: float) -> Estimate:
    return Estimate(value=estimate.value + by, low=estimate.low + by, high=estimate.high + by)


def _classifier(place: int, seeds: int) -> Method:
    label, quality, trained, peak, speed, seconds, prompt, mergeable, rate = CLASSIFIERS[place]
    below = quality - CLASSIFIERS[0][1]
    return Method(
        label=label,
        contender=Contender(label=label, method={label.partition(":")[0]: {}}, learning_rate=rate),
        seeds=tuple(range(seeds)),
        folders=tuple(f"runs/{label.partition(':')[0]}-1a2b3c4d-s{seed}" for seed in range(seeds)),
        quality=Estimate(value=quality, low=quality - 0.029, high=quality + 0.025),
        by_seed=tuple(quality + 0.004 * (seed - (seeds - 1) / 2) for seed in range(seeds)),
        over_base=Estimate(value=quality - 0.512, low=quality - 0.56, high=quality - 0.462),
        below_best=Estimate(value=below, low=below - 0.018, high=below + 0.018),
        is_best=place == 0,
        may_be_best=below + 0.018 >= 0,
        trained_count=trained,
        share=trained / 4_386_178,
        stored_bytes=4 * trained + 1200,
        peak_bytes=peak * MIB,
        floor_bytes=412 * MIB,
        memory_how="VmHWM",
        tokens_per_s=float(speed),
        train_s=seconds,
        steps=120,
        tokens=400_000,
        prefill_s=prompt / 1e3,
        answer_s=prompt / 1e3,
        extra_weight_bytes=0 if mergeable else 4 * trained,
        extra_cache_bytes_per_row=0 if label != "prefix" else 41_000,
        mergeable=mergeable,
        learning_rate=rate,
        rates=_probe(rate, place),
        curve=_curve(place, seconds),
    )


def _probe(rate: float, place: int) -> RateProbe:
    end = place == 4
    rates = [rate / 10, rate / 3, rate] if end else [rate / 3, rate, 3 * rate]
    losses = [0.61, 0.52 + 0.01 * place, 0.5] if end else [0.6 - 0.01 * place, 0.5, None if place % 3 == 0 else 0.58]
    trials = [
        RateTrial(rate=rate, loss=loss, error=None if loss is not None else "the loss was nan at step 5")
        for rate, loss in zip(rates, losses, strict=True)
    ]
    return RateProbe(
        rate=rate, before=0.693, trials=tuple(trials), steps=10, scored="64 validation rows", seconds=12.0,
        is_clear=place != 7,
    )  # fmt: skip


def _curve(place: int, seconds: float) -> tuple[Point, ...]:
    points = []
    for step in range(1, 121):
        fall = exp(-step / (18 + 5 * place))
        noise = 0.08 * ((step * 7919 + place * 31) % 13 / 13 - 0.5)
        at = step * seconds / 120
        points.append(Point(step=step, seconds=at, loss=0.27 + 0.02 * place + 0.45 * fall + noise, is_held_out=False))
        if step % 30 == 0:
            loss = 0.3 + 0.02 * place + 0.42 * fall
            points.append(Point(step=step, seconds=at, loss=loss, is_held_out=True))
    return tuple(points)


def _sample(number: int) -> Sample:
    labels = ["base", *(row[0] for row in CLASSIFIERS)]
    answers = {label: "positive" if (place * (number + 2)) % 3 else "negative" for place, label in enumerate(labels)}
    return Sample(
        prompt=f"a {EVIL if number == 0 else 'quietly moving'} film that never trusts its own audience ({number})",
        reference="positive",
        answers=answers,
        disagreement=1 - number / 10,
    )


def _writer(method: Method, place: int) -> Method:
    value = 10.2 if method.label == "base" else 3.48 + 0.09 * (place - 1)
    below = -0.026 * (place - 1) if place else -1.07
    return replace(
        method,
        quality=Estimate(value=value, low=value * 0.968, high=value * 1.033),
        by_seed=(value,),
        below_best=Estimate(value=below, low=below - 0.02, high=below + 0.02),
        over_base=None if method.label == "base" else Estimate(value=1.07 + below, low=1.02 + below, high=1.12 + below),
        may_be_best=below + 0.02 >= 0,
        seeds=(0,),
        per_token_s=0.041 + 0.001 * place,
        prefill_s=0.14 + 0.004 * place,
        answer_s=0.14 + 16 * 0.041 + 0.02 * place,
    )


def _writing(number: int, labels: list[str]) -> Sample:
    names = ("The Punter", "Blue Spice", "The Eagle", "Aromi", "Giraffe")
    said = (
        "{} is a cheap coffee shop near the river with a low customer rating.",
        "{} is a coffee shop near the river. It is cheap and has a low customer rating.",
        "{} is a coffee shop in the riverside area that serves Italian food at a moderate price, is rated 3 out of 5, "
        "does not welcome children, and lies next to a burger restaurant. " + "It is also known for its fish. " * 12,
        "",
    )
    answers = {
        label: said[(place * (number + 1)) % len(said)].format(names[number]) for place, label in enumerate(labels)
    }
    return Sample(
        prompt=f"name[{names[number]}], eatType[coffee shop], priceRange[cheap], customer rating[low], area[riverside]",
        reference=said[0].format(names[number]),
        answers=answers,
        disagreement=0.8 - number / 10,
    )
