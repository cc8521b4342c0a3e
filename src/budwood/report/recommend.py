"""What to use: of the methods that cannot be told from the best within the limits, the one that costs least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from budwood.errors import BadConfig, did_you_mean
from budwood.records import BASE
from budwood.report.limits import DIMENSIONS, LIMITS, Breach, Dimension, over, read_limits
from budwood.report.table import Estimate, Method, Pick, Table

NEAR = 1.1
"""Costs that differ by no more than this are the same."""


def recommend(
    table: Table,
    *,
    memory: str | float | None = None,
    parameters: str | float | None = None,
    stored: str | float | None = None,
    train_time: str | float | None = None,
    answer_time: str | float | None = None,
    quality: float | None = None,
) -> Pick:
    """The method to use, within the table's own limits and those given here, which come first.

    memory, stored: "6GiB" or bytes; parameters: "2M"; train_time: "10m"; answer_time: "50ms"; quality: the least
    accuracy, or the highest perplexity
    Raises BadConfig for a limit that cannot be read.
    """
    given = read_limits(
        memory=memory, parameters=parameters, stored=stored, train_time=train_time, answer_time=answer_time,
        quality=quality,
    )  # fmt: skip
    limits = {**table.limits, **given}
    unknown = sorted(set(limits) - set(LIMITS))
    if unknown:
        raise BadConfig(f"there is no limit {unknown[0]!r}; {did_you_mean(unknown[0], LIMITS)}")
    candidates = [one for one in table.methods if one.label in table.between]
    breaches = {one.label: over(one, limits, table.metric) for one in table.methods if one.seeds}
    breaches = {label: found for label, found in breaches.items() if found}
    said = {label: "; ".join(breach.words for breach in found.values()) for label, found in breaches.items()}
    within = [one for one in candidates if one.label not in breaches]
    if not any(one.label != BASE for one in candidates):
        return _none("No trained method was scored on test rows, so nothing can be recommended.", over_limits=said)
    if not any(one.label != BASE for one in within):
        trained = {label: found for label, found in breaches.items() if label != BASE and label in table.between}
        return _none(_nearest(trained), over_limits=said)
    tied = _tied(within, table)
    cheapest = {dimension.name: label for dimension in DIMENSIONS if (label := _cheapest(tied, dimension)) is not None}
    pick = _pick(tied)
    if pick.label == BASE:
        headline, reasons = _keep_the_base(table, tied, within)
    else:
        headline, reasons = _use(table, pick, tied, within, cheapest)
    if said:
        reasons.append(f"Over the limits: {'; '.join(f'{label} ({words})' for label, words in said.items())}.")
    return Pick(
        label=pick.label, headline=headline, reasons=tuple(reasons), tied=tuple(one.label for one in tied),
        cheapest=cheapest, over_limits=said,
    )  # fmt: skip


def least(table: Table, pick: Pick) -> list[tuple[str, str, str]]:
    """(dimension, label, cost in words) of the cheapest in each; nothing where only one trained method is left."""
    if sum(label != BASE for label in pick.tied) < 2:
        return []
    of = {one.name: one for one in DIMENSIONS}
    costs = [(name, label, of[name].cost(table.method(label))) for name, label in pick.cheapest.items()]
    return [(name, label, of[name].say(cost)) for name, label, cost in costs if cost is not None]


def _tied(within: Sequence[Method], table: Table) -> list[Method]:
    """Those that cannot be told from the best observed, the best first."""
    best = max(within, key=lambda one: min(table.between[one.label][other.label].value for other in within))
    tied = [one for one in within if table.between[one.label][best.label].high >= 0]
    return sorted(tied, key=lambda one: -table.between[one.label][best.label].value)


def _pick(tied: Sequence[Method]) -> Method:
    """The base where it is among them, since it costs nothing; else the lowest mean rank of those that surely gain."""
    base = next((one for one in tied if one.label == BASE), None)
    sure = [one for one in tied if _gains(one)] or tied
    ranks = {one.label: _rank(one, sure) for one in sure}
    return base or min(sure, key=lambda one: (ranks[one.label], one.trained_count or 0))


def _gains(method: Method) -> bool:
    """Whether it is better than the untuned model for sure."""
    return method.over_base is not None and method.over_base.low > 0


def _rank(method: Method, tied: Sequence[Method]) -> float:
    """Over the dimensions that were measured for all: how many are cheaper by more than `NEAR`, on average."""
    ranks = []
    for dimension in DIMENSIONS:
        costs = [dimension.cost(one) for one in tied]
        own = dimension.cost(method)
        if dimension.is_ranked and own is not None:
            known = [cost for cost in costs if cost is not None]
            if len(known) == len(costs):
                ranks.append(sum(cost * NEAR < own for cost in known))
    return mean(ranks) if ranks else 0.0


def _cheapest(tied: Sequence[Method], dimension: Dimension) -> str | None:
    """The trained one that costs least, the better one of equals; None where nothing was measured."""
    costs = {one.label: cost for one in tied if (cost := dimension.cost(one)) is not None and one.label != BASE}
    return min(costs, key=lambda label: costs[label]) if costs else None


def _use(
    table: Table, pick: Method, tied: Sequence[Method], within: Sequence[Method], cheapest: Mapping[str, str]
) -> tuple[str, list[str]]:
    alone, others = len(tied) == 1, [one for one in within if one.label != pick.label]
    costs = [(one, cost) for one in DIMENSIONS if one.is_ranked and (cost := one.cost(pick)) is not None]
    lowest = [(one, cost) for one, cost in costs if cheapest.get(one.name) == pick.label]
    idle = [one.label for one in tied if not _gains(one)] if _gains(pick) else []
    needs = [one.needs.format(one.say(cost)) for one, cost in (costs if alone or not lowest else lowest)]
    if not others:
        bounds = "within the limits" if len(table.between) > 1 else "here"
        headline = f"Use {pick.label}: it is the only one {bounds}."
    elif alone:
        headline = f"Use {pick.label}: it is better than every other method here."
    else:
        word = "the least of these" if lowest else "no single cost is the least, but together they are the lowest"
        headline = f"Use {pick.label}: nothing is better that this data can show."
        needs = [*needs[:-1], f"{needs[-1]} ({word})"] if needs else []
    if needs:
        headline += f" It {_listed(needs)}."
    reasons = []
    if not alone:
        reasons.append(
            f"{_listed([one.label for one in tied])} cannot be told apart from the best observed, {tied[0].label}, on "
            f"{table.rows_scored:,} test rows."
        )
        reasons.append(
            "Among methods that cannot be told apart, the one with the lowest mean rank in memory, training time, "
            "answer time and stored size is named, where values within 10 % share a rank; of equals, the one that "
            "trains fewer parameters."
        )
        if idle:
            reasons.append(f"{_listed(idle)} cannot be told from the untuned model either, so not named.")
    below = [one for one in others if one not in tied]
    reasons += [f"{one.label} is worse than {tied[0].label} by {_reach(table, tied[0], one)}." for one in below]
    if pick.over_base is not None and BASE not in {one.label for one in below}:
        reasons.append(f"Against the untuned model it gains {told(pick.over_base, table)}.")
    return headline, reasons


def _keep_the_base(table: Table, tied: Sequence[Method], within: Sequence[Method]) -> tuple[str, list[str]]:
    rows = f"{table.rows_scored:,} test rows"
    best = next((one for one in tied if one.label != BASE), None)
    if best is None:
        worse = [one.label for one in within if one.label != BASE]
        every = "every method" if len(within) == len(table.between) else "every method within the limits"
        reason = f"The untuned model is better than {_listed(worse)} on {rows}."
        return f"Keep {table.model} as it is: training made it worse with {every}.", [reason]
    gained = _reach(table, best, table.method(BASE))
    return (
        f"Keep {table.model} as it is, or test on more rows: training gained nothing that these {rows} can show.",
        [
            f"The best observed after training, {best.label}, differs from the untuned model by {gained}: that may be "
            "nothing.",
            f"If one has to be trained, {_pick([one for one in tied if one.label != BASE]).label} costs least of those "
            "that cannot be told from the best.",
        ],
    )


def _nearest(breaches: Mapping[str, Mapping[str, Breach]]) -> str:
    worst = {label: max(found.values(), key=lambda one: one.times) for label, found in breaches.items()}
    label = min(worst, key=lambda one: worst[one].times)
    return f"No method is within the limits. {label} comes nearest: {worst[label].words}."


def _none(headline: str, *, over_limits: dict[str, str]) -> Pick:
    return Pick(label=None, headline=headline, reasons=(), tied=(), cheapest={}, over_limits=over_limits)


def _reach(table: Table, better: Method, other: Method) -> str:
    return told(table.between[better.label][other.label], table)


def told(estimate: Estimate, table: Table) -> str:
    """A difference with its interval and unit: "3.1 points of accuracy [1.2, 5.0]"."""
    if table.metric is None or not table.metric.higher_is_better:
        return f"{estimate.value:.3f} nats per token [{estimate.low:.3f}, {estimate.high:.3f}]"
    value, low, high = (100 * one for one in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} {table.metric.difference} [{low:.1f}, {high:.1f}]"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
