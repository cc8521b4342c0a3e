"""`budwood try`: the same prompts, answered before and after training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from budwood.cli.layers import layered, text_of
from budwood.cli.options import Below, Machine, Talk, given
from budwood.cli.output import Sink, Table
from budwood.cli.subject import PREFERENCE, Pair, Subject, asked_below, open_subject, whole
from budwood.errors import BadConfig, NotAvailable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from budwood.evaluate import Sampling

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
    context: str = ""
    """The text that typed questions are about."""

    def both(self, prompts: Sequence[Any]) -> tuple[list[str], list[str]]:
        """(before, after), one answer for each prompt, as `asked_as` gives it."""
        with self.pair.subject.arithmetic():
            after = self._answers(self.pair.trained, prompts)
            with self.pair.base() as base:
                return self._answers(base, prompts), after

    def _answers(self, model: PreTrainedModel, prompts: Sequence[Any]) -> list[str]:
        from budwood.evaluate import answer, generate

        settings = self.pair.subject.settings
        cloze = self.pair.subject.cloze
        if cloze is not None:
            names = answer(model, self.tokenizer, cloze, [str(prompt) for prompt in prompts])
            return [f"{name} ({share:.0%})" for name, share in names]
        if (answers := ANSWERS.get(self.pair.subject.task)) is not None:
            return answers(self, model, prompts)
        texts = generate(
            model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, sampling=self.sampling,
            batch_size=whole(settings, "batch", 8),
            template=text_of(settings, "template") or "auto",  # type: ignore[arg-type]
        )  # fmt: skip
        return [text.strip() for text in texts]


def attempt(
    run: str = "latest", /, *, prompt: Annotated[tuple[str, ...], Parameter(negative=())] = (), rows: int = 3,
    file: Path | None = None, on: Below = (), model: str | None = None, max_new_tokens: int = 64,
    temperature: float | None = None, machine: Machine | None = None, talk: Talk | None = None,
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
    file: Path
        A text that questions are about, for a run that finds answers.
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
    context = _context(subject, file, prompt, sink)
    asking = Asking(Pair.load(subject), subject.load_tokenizer(), max_new_tokens, sampling, context)
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


def _context(subject: Subject, file: Path | None, prompt: Sequence[str], sink: Sink) -> str:
    """The text that questions are about, from a file or typed; '' where nobody asks about one.

    Raises BadConfig for a question without a text or a text without a use, NotAvailable for a file that is not there.
    """
    if subject.task != "question-answering":
        if file is not None:
            raise BadConfig(
                f"--file gives a text to ask about, and {subject.shown} is for {subject.task}; leave it out"
            )
        return ""
    if file is not None:
        from budwood.data.files import lines

        if not prompt and not is_interactive(sink):
            raise BadConfig("--file gives a text, and nothing is asked about it; add --prompt QUESTION")
        if not file.is_file():
            raise NotAvailable(f"{file} does not exist; name a file with the text that is asked about")
        return "".join(line for _, line in lines(file))
    if prompt:
        raise BadConfig("a question is asked about a text: name a file that holds it, --file TEXT.txt")
    return input("text> ").strip() if is_interactive(sink) else ""


def held_out(asking: Asking, rows: int) -> list[Answered]:
    """The first held-out rows that ask something different, answered."""
    from budwood.data import Passage, Tagged, Text
    from budwood.evaluate import gaps, hidden, shown
    from budwood.train.judging import reference

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
    tasks_of_values = isinstance(chosen[0].value, Tagged | Passage)
    before, after = asking.both([row.value if tasks_of_values else row.asked or row.prompt for row in chosen])
    expected = ["" if isinstance(row.value, Text) else reference(row, corpus.labels) for row in chosen]
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


def _asked(asking: Asking, prompts: Sequence[str]) -> list[Answered]:
    """Prompts as typed, put to a chat model as a user's turn."""
    before, after = asking.both([asked_as(asking, text) for text in prompts])
    return [Answered(*texts) for texts in zip(prompts, before, after, strict=True)]


def asked_as(asking: Asking, text: str) -> Any:
    """What was typed, as the task reads it: a turn, words, a question about a text, or simply text."""
    from budwood.data import Passage, Tagged, Turn, split_words

    match asking.pair.subject.task:
        case "causal-lm":
            return (Turn("user", text),)
        case "token-classification":
            words = split_words(text)
            return Tagged(tuple(words), (-1,) * len(words))
        case "question-answering":
            return Passage(asking.context, text, ())
        case _:
            return text


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


def _classes(asking: Asking, model: PreTrainedModel, prompts: Sequence[Any]) -> list[str]:
    """The class of each text, with how sure the model is."""
    import torch

    from budwood.evaluate import evaluating, longest_of

    texts, labels = [str(prompt) for prompt in prompts], asking.pair.subject.labels or ()
    limit = longest_of(model, asking.tokenizer)
    encoded: Any = asking.tokenizer(
        texts, padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt"
    ).to(model.device)
    with evaluating(model):
        shares = torch.softmax(model(**encoded).logits.float(), dim=-1)  # [texts, classes]
    best = shares.max(dim=-1)
    names = list(labels) or [model.config.id2label[place] for place in range(shares.shape[-1])]
    return [
        f"{names[place]} ({share:.0%})"
        for share, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _hidden_words(asking: Asking, model: PreTrainedModel, prompts: Sequence[Any]) -> list[str]:
    from budwood.evaluate import fill, longest_of, typed

    tokenizer = asking.tokenizer
    longest = longest_of(model, tokenizer)
    return fill(model, tokenizer, [typed(str(prompt), tokenizer, max_length=longest) for prompt in prompts])


def _tags(asking: Asking, model: PreTrainedModel, prompts: Sequence[Any]) -> list[str]:
    """Each sentence with what is marked in brackets."""
    from budwood.data import marked
    from budwood.evaluate import tag_sentences

    tags = tag_sentences(model, asking.tokenizer, [prompt.words for prompt in prompts])
    return [marked(prompt.words, said) for prompt, said in zip(prompts, tags, strict=True)]


def _pieces(asking: Asking, model: PreTrainedModel, prompts: Sequence[Any]) -> list[str]:
    """The likeliest piece of each text, and whether nothing is likelier."""
    from budwood.evaluate import answer_passages

    found = answer_passages(model, asking.tokenizer, prompts)
    return [f"{text} (or nothing, which is likelier)" if is_nothing else text for text, is_nothing in found]


ANSWERS: Mapping[str, Callable[[Asking, Any, Sequence[Any]], list[str]]] = {
    "classification": _classes,
    "masked-lm": _hidden_words,
    "token-classification": _tags,
    "question-answering": _pieces,
}
"""How a task answers where it does not write."""
