"""`budwood search`: methods, sizes, learning rates and a time into one good run, told as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from budwood.cli.compare import Teller, jobs, tell
from budwood.cli.layers import layered
from budwood.cli.options import Machine, Searches, Talk, given
from budwood.cli.output import Sink, Table
from budwood.cli.train import find, refuse_more
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from budwood.compare.compared import Compared

USAGE = "budwood search MODEL DATA --budget 20m"


def search(
    model: str | None = None, data: str | None = None, /, *,
    training: Searches | None = None, machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Find a method, its size and its learning rate within a given time, and train it.

    Parameters
    ----------
    model: str
        A folder, a hub id, a .gguf file or a demo name.
    data: str
        A file, a folder of splits, a hub id or a demo name.
    """
    from budwood.compare.search import candidates_of, resume, search_job, seconds_of

    training, machine, talk = training or Searches(), machine or Machine(), talk or Talk()
    sink = talk.sink()
    typed = {**given(training), **given(machine)}
    places = {name: word for name, word in (("model", model), ("data", data)) if word is not None}
    if training.resume is not None:
        refuse_more({**typed, **places})
        return _tell(resume(training.resume, listener=Teller(sink)), sink)
    flags = {name: value for name, value in typed.items() if name not in ("config", "dry_run", "force")}
    settings = layered({**flags, **places}, machine.config, also=("memory",))
    find(settings, sink, USAGE)
    if "budget" not in settings:
        raise BadConfig(f"a search stops on time; say how long it may take: {USAGE}")
    job, wanted = jobs(settings)
    seconds_of(job.config.parsed_budget)
    if training.dry_run:
        rows = [(one.label, "") for one in candidates_of(wanted.methods)]
        sink.tell(Table(("would be tried", ""), rows))
        sink.say("nothing was trained or written (--dry-run); budwood compare --dry-run says what a step of each takes")
        return 0
    return _tell(search_job(job, wanted, listener=Teller(sink)), sink)


def _tell(compared: Compared, sink: Sink) -> int:
    """Why it is this one, and the run that is ready; then as a comparison is told."""
    record = compared.record
    chosen, item = record.contenders[-1], record.items[-1]
    sink.head(f"{chosen.label}, learning rate {chosen.learning_rate:g}")
    for note in record.notes:
        sink.say(note)
    sink.say()
    code = tell(compared, sink)
    sink.say(f"the run   {compared.folder.run(item).path}")
    sink.say(f"try it    budwood try {compared.folder.run(item).path}")
    return code
