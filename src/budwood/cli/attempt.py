"""`budwood try`: the same prompts, answered before and after training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from budwood.cli.layers import layered, text_of
from budwood.cli.options import Below, Machine, Talk, given
from budwood.cli.output import Sink, Table
from budwood.cli.subject import PREFERENCE, Pair, asked_below, open_subject, whole
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from budwood.evaluate import Sampling
    from budwood.evaluate.generate import Prompt

LONGEST = 64
"""Tokens of a held-out text that words are hidden in, for people to look at."""


@dataclass(frozen=True)
class Answered:
    """One prompt, before and after."""

    prompt: str
    before: str
    after: str
    expected: str = ""
    """What the data has, for held-out rows."""


@dataclass(frozen=True)
class Asking:
    """How prompts are answered."""

    pair: Pair
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    sampling: Sampling | None

    def both(self, prompts: Sequence[Prompt]) -> tuple[list[str], list[str]]:
        """(before, after), one answer a prompt."""
        with self.pair.subject.arithmetic():
            after = self._answers(self.pair.trained, prompts)
            with self.pair.base() as base:
                return self._answers(base, prompts), after

    def _answers(self, model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[str]:
        from budwood.evaluate import answer, fill, generate, typed

        settings = self.pair.subject.settings
        cloze = self.pair.subject.cloze
        if cloze is not None:
            names = answer(model, self.tokenizer, cloze, [str(prompt) for prompt in prompts])
            return [f"{name} ({share:.0%})" for name, share in names]
        if self.pair.subject.task == "classification":
            return classes(model, self.tokenizer, [str(prompt) for prompt in prompts], self.pair.subject.labels or ())
        if self.pair.subject.task == "masked-lm":
            return fill(model, self.tokenizer, [typed(str(prompt), self.tokenizer) for prompt in prompts])
        texts = generate(
            model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, sampling=self.sampling,
            batch_size=whole(settings, "batch", 8),
            template=text_of(settings, "template") or "auto",  # type: ignore[arg-type]
        )  # fmt: skip
        return [text.strip() for text in texts]


def attempt(
    run: str = "latest", /, *, prompt: Annotated[tuple[str, ...], Parameter(negative=())] = (), rows: int = 3,
    on: Below = (), model: str | None = None, max_new_tokens: int = 64, temperature: float | None = None,
    machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Answers before and after training, side by side.

    Parameters
    ----------
    run: str
        A run (folder, name or latest) or an adapter folder.
    prompt: str
        What to ask; repeat it for several. [asked for on a terminal, else held-out rows]
    rows: int
        How many held-out rows to ask, where there is no prompt. [3]
    on: str
        A run or adapter to put below it, or none; repeat it for several. [what it was trained on]
    model: str
        The base, where the adapter does not say or it moved.
    max_new_tokens: int
        Longest answer. [64]
    temperature: float
        Draw answers at this temperature. [the most likely answer]
    """
    from budwood.evaluate import Sampling

    machine, talk = machine or Machine(), talk or Talk()
    sink = talk.sink()
    settings = layered({**given(machine), **asked_below(on)}, machine.config)
    subject = open_subject(run, settings, sink, model=model)
    sampling = None if temperature is None else Sampling(temperature=temperature, seed=whole(settings, "seed", 0))
    asking = Asking(Pair.load(subject), subject.load_tokenizer(), max_new_tokens, sampling)
    sink.say(f"{subject.in_force}: {subject.base} before, and as trained")
    if not prompt and is_interactive(sink):
        return _converse(asking, sink)
    answered = _asked(asking, prompt) if prompt else held_out(asking, rows)
    for one in answered:
        show(one, sink)
    sink.result(
        {"subject": subject.shown, "base": subject.base, "on": subject.on, "answers": [asdict(one) for one in answered]}
    )
    return 0


def held_out(asking: Asking, rows: int) -> list[Answered]:
    """The first held-out rows that ask something different, answered."""
    from budwood.data import Labelled
    from budwood.evaluate import gaps, hidden, shown

    if rows < 1:
        raise BadConfig(f"--rows is {rows}; it must be at least 1")
    subject = asking.pair.subject
    corpus = subject.read(None)
    split = next(name for name in PREFERENCE if name in corpus.splits)
    chosen = list({row.prompt: row for row in corpus.rows(split)}.values())[:rows]
    if corpus.task == "masked-lm":
        tokenizer = asking.tokenizer
        found = gaps([row.prompt for row in chosen], tokenizer, max_length=LONGEST)
        texts = [shown(gap, tokenizer) for gap in found]
        columns = (texts, *asking.both(texts), [hidden(gap, tokenizer) for gap in found])
        return [Answered(*parts) for parts in zip(*columns, strict=True)]
    prompts: list[Prompt] = [row.asked or row.prompt for row in chosen]
    before, after = asking.both(prompts)
    labels = corpus.labels or ()
    expected = [labels[r.value.label] if isinstance(r.value, Labelled) else r.answer for r in chosen]
    return [Answered(row.prompt, *texts) for row, *texts in zip(chosen, before, after, expected, strict=True)]


def show(one: Answered, sink: Sink) -> None:
    """One prompt and its two answers, on stdout."""
    sink.data("")
    sink.show(Table(("", ""), [
        ("asked", one.prompt), ("before", one.before or "(nothing)"), ("after", one.after or "(nothing)"),
        *([("in the data", one.expected)] if one.expected else []),
    ]))  # fmt: skip


def is_interactive(sink: Sink) -> bool:
    """Whether someone sits at a terminal."""
    return not sink.is_json and sys.stdin.isatty() and sink.stderr.isatty()


def classes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], labels: Sequence[str]
) -> list[str]:
    """The class of each text, with how sure the model is."""
    import torch

    from budwood.evaluate import evaluating

    encoded: Any = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(model.device)
    with evaluating(model):
        shares = torch.softmax(model(**encoded).logits.float(), dim=-1)  # [texts, classes]
    best = shares.max(dim=-1)
    names = list(labels) or [model.config.id2label[place] for place in range(shares.shape[-1])]
    return [
        f"{names[place]} ({share:.0%})"
        for share, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _asked(asking: Asking, prompts: Sequence[str]) -> list[Answered]:
    """Prompts as typed, put to a chat model as a user's turn."""
    before, after = asking.both([_turn(asking, text) for text in prompts])
    return [Answered(*texts) for texts in zip(prompts, before, after, strict=True)]


def _turn(asking: Asking, text: str) -> Prompt:
    from budwood.data import Turn

    return (Turn("user", text),) if asking.pair.subject.task == "causal-lm" else text


def _converse(asking: Asking, sink: Sink) -> int:
    """Prompts typed at a terminal, until an empty line or Ctrl-D."""
    sink.say("type a prompt; an empty line ends")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return 0
        if not text:
            return 0
        for one in _asked(asking, [text]):
            show(one, sink)
