"""`budwood compare`: methods, seeds and data into one comparison, then its runs, told as they go."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from budwood.cli.layers import Settings, layered, split, words_of
from budwood.cli.options import Comparisons, Machine, Talk, given
from budwood.cli.output import Sink, Table, amount, duration, size
from budwood.cli.train import find, job_of, refuse_more
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from budwood.compare.compared import Compared
    from budwood.compare.config import Comparing
    from budwood.compare.work import Task
    from budwood.records import Comparison, Item
    from budwood.records.files import Json
    from budwood.train.job import Job

USAGE = "budwood compare MODEL DATA"
OWN = ("seeds", "memory", "search", "ray")
"""Settings that belong to a comparison and not to its runs."""


def compare(
    model: str | None = None, data: str | None = None, /, *,
    training: Comparisons | None = None, machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Train several methods on the same rows in the same order with the same budget, and see which to use.

    Parameters
    ----------
    model: str
        A folder, a hub id, a .gguf file or a demo name.
    data: str
        A file, a folder of splits, a hub id or a demo name.
    """
    training, machine, talk = training or Comparisons(), machine or Machine(), talk or Talk()
    sink = talk.sink()
    typed = {**given(training), **given(machine)}
    places = {name: word for name, word in (("model", model), ("data", data)) if word is not None}
    if training.resume is not None:
        refuse_more({**{key: value for key, value in typed.items() if key != "ray"}, **places})
        return tell(_resumed(training, sink), sink)
    flags = {name: value for name, value in typed.items() if name not in ("config", "dry_run", "force")}
    settings = layered({**flags, **places}, machine.config, also=OWN)
    find(settings, sink, USAGE)
    job, wanted = jobs(settings)
    if training.dry_run:
        return _dry_run(job, wanted, sink)
    return tell(told(job, wanted, sink), sink)


def jobs(settings: Settings) -> tuple[Job, Comparing]:
    """(what all runs share, what is compared). Raises BadConfig, naming what is missing or wrong."""
    from budwood.compare.config import BUDGET, Comparing
    from budwood.compare.plan import bytes_of, contenders_of

    rest, own = split(settings, OWN)
    said: Any = rest.pop("method", ())
    methods = tuple(said) if isinstance(said, list | tuple) else words_of(said, "method")
    contenders_of(methods)  # a wrong name is known before anything is read
    seeds = own.get("seeds")
    if seeds is not None and (not isinstance(seeds, int) or seeds < 1):
        raise BadConfig(f"seeds is {seeds!r}; give how many, as --seeds 3")
    memory = own.get("memory")
    if memory is not None:
        bytes_of(str(memory))
    rest.setdefault("budget", BUDGET)
    job = job_of({**rest, "method": "full"}, force=False, usage=USAGE)
    wanted = Comparing(
        methods=methods, seeds=seeds or 1, memory=None if memory is None else str(memory),
        search=own.get("search") is not False, ray=bool(own.get("ray")),
    )  # fmt: skip
    return job, wanted


def told(job: Job, wanted: Comparing, sink: Sink) -> Compared:
    """A comparison, told as it goes."""
    from budwood.compare.run import compare_job

    return compare_job(job, wanted, listener=Teller(sink))


def _resumed(training: Comparisons, sink: Sink) -> Compared:
    from budwood.compare.run import resume

    assert training.resume is not None
    return resume(training.resume, ray=training.ray, listener=Teller(sink))


@dataclass
class Teller:
    """Listens to a comparison (`budwood.compare.config.Listener`) and tells the human."""

    sink: Sink
    _name: str = ""

    def plan(self, comparison: Comparison) -> None:
        """How many runs there are, and which are done."""
        runs = [one for one in comparison.items if one.label != "base"]
        done = sum(one.status == "finished" for one in runs)
        kept = f", of which {done} are done" if done else ""
        counts = (len(comparison.contenders) - 1, "method"), (len(comparison.seeds), "seed"), (len(runs), "run")
        methods, seeds, what = (f"{many} {word}{'' if many == 1 else 's'}" for many, word in counts)
        self.sink.say(f"{methods}, {seeds}: {what} of {comparison.budget}{' each' if len(runs) > 1 else ''}{kept}")

    def begin(self, task: Task, number: int, total: int) -> None:
        """Which run begins."""
        self._name = task.name
        place = f"{number}/{total}" if total else f"{number}"
        self.sink.say(f"[{place}] {task.name}" if number else f"{task.name}: the untuned model")

    def hear(self, task: Task, event: Mapping[str, Json]) -> None:
        """What a run tells: where it is, on a terminal; its notes with -v."""
        if event["event"] == "step" and self.sink.is_live and not self.sink.is_json:
            left = duration(float(event["left_s"]))
            sys.stderr.write(f"\r  step {event['step']}  loss {event['loss']:.3f}  {left} left\x1b[K")
            sys.stderr.flush()
        elif event["event"] == "note":
            self.sink.detail(f"  {event['text']}")

    def end(self, item: Item, comparison: Comparison) -> None:
        """How it ended."""
        if self.sink.is_live and not self.sink.is_json:
            sys.stderr.write("\r\x1b[K")
        took = duration(item.seconds) if item.seconds else ""
        if item.error:
            verdict = comparison.contender(item.label).verdict
            self.sink.say(f"  {verdict if verdict != 'ready' else item.status}: {item.error}", "yellow")
        else:
            rates = comparison.contender(item.label).rates
            self.sink.say(f"  done in {took}" + (f", at learning rate {rates.rate:g}" if rates else ""))


def _dry_run(job: Job, wanted: Comparing, sink: Sink) -> int:
    """What each method would need; nothing is kept."""
    from budwood.compare.run import predict
    from budwood.records.amounts import duration as words

    found = predict(job, wanted, listener=Teller(sink))
    seeds = wanted.seeds if isinstance(wanted.seeds, int) else len(wanted.seeds)
    rows, total = [], 0.0
    for one in found:
        if "error" in one:
            rows.append((one["label"], one["error"], "", ""))
            continue
        trials = float(one["rate_steps"]) * float(one["step_s"])
        seconds = seeds * float(one["predicted_s"]) + trials
        total += seconds
        trained = f"{amount(one['trained_count'])} parameters"
        rows.append((one["label"], trained, size(one["predicted_bytes"]), words(seconds)))
    sink.tell(Table(("method", "trains", "peak memory", "training, all seeds"), rows))
    sink.say()
    sink.say(f"about {words(total)} of training steps in all; loading, scoring and checking come on top")
    sink.say("nothing was trained or written (--dry-run)")
    sink.result({"methods": found, "training_s": total})
    return 0


def tell(compared: Compared, sink: Sink) -> int:
    """The recommendation first, then the table, then where everything is."""
    from budwood.report.text import as_json, brief, reasons

    table, pick = compared.table, compared.recommend()
    sink.head(pick.headline)
    for reason in reasons(table, pick):
        sink.say(reason)
    headings, rows = brief(table)
    sink.say()
    sink.tell(Table(headings, rows))
    for line in table.weaknesses:
        sink.say(f"note: {line}", "dim")
    sink.say()
    sink.say(f"report   {compared.report}")
    if not sink.is_live:
        sink.data(str(compared.report))
    sink.result({"comparison": compared.path, "report": compared.report, **as_json(table)})
    return 0
