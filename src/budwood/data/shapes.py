"""The shapes of rows: recognised by their columns, checked row by row, brought to one form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from budwood.data.corpus import Conversation, Corpus, Labelled, Task, Text, Turn, Value
from budwood.data.fields import BadValue, Fields, clean, optional_text, text_of
from budwood.data.spans import read_passage
from budwood.data.tagging import read_tagged
from budwood.errors import BadConfig, BadData, did_you_mean

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Who says a message: names of sharegpt and chat messages, to roles."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Columns that make a shape, and how a row of it becomes a value (a label is filled in afterwards)."""

    name: str
    tasks: tuple[Task, ...]
    """What it can be used for; the first where nobody says."""
    required: tuple[str, ...]
    optional: tuple[str, ...]
    build: Callable[[Fields], Value]
    example: str
    """A row of this shape, as one would write it."""


def _system(fields: Fields) -> tuple[Turn, ...]:
    system = optional_text(fields, "system")
    return (Turn("system", system),) if system else ()


def _messages(fields: Fields) -> Conversation:
    return Conversation(_system(fields) + _turns(fields, "messages", "role", "content"))


def _sharegpt(fields: Fields) -> Conversation:
    return Conversation(_system(fields) + _turns(fields, "conversations", "from", "value"))


def _turns(fields: Fields, column: str, who: str, what: str, learn: bool = True) -> tuple[Turn, ...]:
    messages = fields.get(column)
    if not isinstance(messages, list) or not messages:
        raise BadValue(f'{column} is not a list of messages; write [{{"{who}": "user", "{what}": "..."}}, ...]')
    if fields.get("tools"):
        raise BadValue("it declares tools, which are not supported yet; leave such rows out")
    return tuple(_turn(message, f"{column}[{n}]", who, what, learn) for n, message in enumerate(messages))


def _turn(message: object, name: str, who: str, what: str, learn: bool) -> Turn:
    """One message; an assistant's is learned, unless it says "weight": 0."""
    if not isinstance(message, dict) or who not in message:
        raise BadValue(f'{name} is {str(message)[:60]!r}; write {{"{who}": "user", "{what}": "..."}}')
    role = SPEAKERS.get(str(message[who]))
    if role is None:
        known = "human, gpt, system" if who == "from" else "system, user, assistant"
        raise BadValue(f"{name} has {who} {message[who]!r}; it must be one of {known} (tools are not supported)")
    if message.get("tool_calls"):
        raise BadValue(f"{name} calls tools, which are not supported yet; leave such rows out")
    content = message.get(what)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise BadValue(f"{name} has {what} {str(content)[:40]!r}, expected text; write a string")
    learned = learn and role == "assistant" and message.get("weight", 1) != 0
    return Turn(role, clean(content, name), learned)  # type: ignore[arg-type]  # SPEAKERS holds roles


def _asked_and_answered(ask: str, answer: str) -> Callable[[Fields], Conversation]:
    def build(fields: Fields) -> Conversation:
        if isinstance(fields.get(ask), list):
            before = _turns(fields, ask, "role", "content", learn=False)
            return Conversation(_system(fields) + before + _turns(fields, answer, "role", "content"))
        asked = Turn("user", text_of(fields, ask))
        return Conversation((*_system(fields), asked, Turn("assistant", text_of(fields, answer), True)))

    return build


def _alpaca(fields: Fields) -> Conversation:
    history: list[Turn] = []
    past = fields.get("history") or []
    if not isinstance(past, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in past):
        raise BadValue('history must be a list of [instruction, output] pairs; write [["...", "..."], ...]')
    for ask, answer in past:
        pair = {"instruction": ask, "output": answer}
        history += [Turn("user", text_of(pair, "instruction")), Turn("assistant", text_of(pair, "output"), True)]
    extra = optional_text(fields, "input")
    asked = text_of(fields, "instruction") + (f"\n{extra}" if extra else "")
    answer = Turn("assistant", text_of(fields, "output"), True)
    return Conversation((*_system(fields), *history, Turn("user", asked), answer))


def _labelled(text: str, pair: str | None = None) -> Callable[[Fields], Labelled]:
    def build(fields: Fields) -> Labelled:
        return Labelled(text_of(fields, text), None if pair is None else text_of(fields, pair), -1)

    return build


def _plain(fields: Fields) -> Text:
    return Text(text_of(fields, "text"))


CHAT: tuple[Task, ...] = ("causal-lm",)
TWO_TURNS: tuple[Task, ...] = ("causal-lm", "seq2seq")
CLASSES: tuple[Task, ...] = ("classification", "cloze")
TAGS: tuple[Task, ...] = ("token-classification",)
SPANS: tuple[Task, ...] = ("question-answering",)
PLAIN: tuple[Task, ...] = ("causal-lm", "masked-lm")
WANTED: Mapping[Task, str] = {
    "causal-lm": "to learn text", "classification": "to classify", "masked-lm": "to learn text with hidden words",
    "seq2seq": "to turn one text into another", "cloze": "to classify by words",
    "token-classification": "to tag words", "question-answering": "to find answers in a text",
}  # fmt: skip
"""What each task does with rows, for messages."""
FLAGS: Mapping[Task, str] = {
    "classification": "text={},label={}", "masked-lm": "text={}", "token-classification": "tokens={},tags={}",
    "question-answering": "context={},question={}", "cloze": "text={},label={}", "seq2seq": "source={},target={}",
}  # fmt: skip
"""What to type where the columns have other names; for all else a prompt and its completion."""
LABELLED = '{"text": "...", "label": "..."}'
PASSAGE = '{"context": "...", "question": "...", "answers": {"text": ["..."], "answer_start": [0]}}'

SHAPES = (
    Shape("messages", CHAT, ("messages",), ("system", "tools"), _messages,
          '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'),
    Shape("sharegpt conversations", CHAT, ("conversations",), ("system", "tools"), _sharegpt,
          '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}'),
    Shape("instruction/output", TWO_TURNS, ("instruction", "output"), ("input", "history", "system"), _alpaca,
          '{"instruction": "...", "input": "...", "output": "..."}'),
    Shape("tokens + tags", TAGS, ("tokens", "tags"), (), read_tagged,
          '{"tokens": ["Ada", "sings"], "tags": ["B-PER", "O"]}'),
    Shape("context + question + answers", SPANS, ("context", "question", "answers"), (), read_passage, PASSAGE),
    Shape("prompt/completion", TWO_TURNS, ("prompt", "completion"), ("system", "tools"),
          _asked_and_answered("prompt", "completion"), '{"prompt": "...", "completion": "..."}'),
    Shape("question/answer", TWO_TURNS, ("question", "answer"), ("system",),
          _asked_and_answered("question", "answer"), '{"question": "...", "answer": "..."}'),
    Shape("source/target", TWO_TURNS, ("source", "target"), (),
          _asked_and_answered("source", "target"), '{"source": "...", "target": "..."}'),
    Shape("context + question + answer", SPANS, ("context", "question", "answer"), (), read_passage, PASSAGE),
    Shape("sentence1 + sentence2 + label", CLASSES, ("sentence1", "sentence2", "label"), (),
          _labelled("sentence1", "sentence2"), '{"sentence1": "...", "sentence2": "...", "label": "..."}'),
    Shape("text + label", CLASSES, ("text", "label"), (), _labelled("text"), LABELLED),
    Shape("sentence + label", CLASSES, ("sentence", "label"), (), _labelled("sentence"), LABELLED),
    Shape("text", PLAIN, ("text",), (), _plain, '{"text": "..."}'),
)  # fmt: skip
"""Every shape, the first that fits wins."""

CANONICAL = tuple(dict.fromkeys(name for shape in SHAPES for name in (*shape.required, *shape.optional)))
"""Column names that mean something."""


def for_encoder_decoder(corpus: Corpus) -> Corpus:
    """The corpus as pairs of texts, where its rows are such and would be a decoder's text; any other as it is."""
    tasks = next((shape.tasks for shape in SHAPES if shape.name == corpus.shape), ())
    return replace(corpus, task="seq2seq") if corpus.task == "causal-lm" and "seq2seq" in tasks else corpus


def parse_columns(text: str) -> dict[str, str]:
    """'prompt=q,completion=a' as {'prompt': 'q', 'completion': 'a'}. Raises BadConfig."""
    columns: dict[str, str] = {}
    for part in text.split(","):
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not (name and equals and column):
            raise BadConfig(f"--columns has {part!r}; write name=column pairs, such as prompt=q,completion=a")
        if name in columns:
            raise BadConfig(f"--columns names {name} twice; name each once")
        columns[name] = column
    check_columns(columns)
    return columns


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises BadConfig if a canonical name is none of ours."""
    for name in columns:
        if name not in CANONICAL:
            raise BadConfig(
                f"--columns maps {name!r}, which is not a column Budwood knows: {did_you_mean(name, CANONICAL)}; "
                f"write known=yours, such as prompt={name}"
            )


def recognise(
    first: Sequence[str], found: Sequence[str], columns: Mapping[str, str], task: Task | None, where: str
) -> tuple[Shape, dict[str, str]]:
    """The shape of data whose first row has these columns, and its canonical names to the file's own.

    found:   columns of all rows: an optional one may appear later
    columns: the user's canonical name to column, over what the names say
    where:   the file, for the message
    Raises   BadData naming the columns that were found, and the flag to use.
    """
    for name, column in columns.items():
        if column not in found:
            raise BadData(
                f"{where} has no column {column!r} for {name}; columns found: {', '.join(found)}; "
                f"{did_you_mean(column, found)}"
            )
    there = _canonical(first, columns)
    for shape in SHAPES:
        parts = (*shape.required, *shape.optional)
        whole = all(name in there for name in shape.required) and all(name in parts for name in columns)
        if whole and (task is None or task in shape.tasks):
            anywhere = _canonical(found, columns) | there
            return shape, {name: anywhere[name] for name in parts if name in anywhere}
    raise BadData(_unrecognised(first, columns, task, where))


def _canonical(found: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Canonical name to column, by the columns' own names (in any case) and by what the user maps."""
    own = {name.strip().lower(): name for name in reversed(found)}
    return {**{name: own[name] for name in CANONICAL if name in own}, **columns}


def _unrecognised(found: Collection[str], columns: Mapping[str, str], task: Task | None, where: str) -> str:
    wanted = WANTED[task] if task else "to learn"
    some = list(found)
    first, second = some[0], some[1 if len(some) > 1 else 0]
    flag = (FLAGS.get(task) if task else None) or "prompt={},completion={}"
    given = f" with --columns {','.join(f'{a}={b}' for a, b in columns.items())}" if columns else ""
    shapes = "; ".join(" + ".join(shape.required) for shape in SHAPES if task is None or task in shape.tasks)
    return (
        f"{where}: no shape recognised {wanted}{given}. Columns found: {', '.join(some)}. "
        f"Known shapes: {shapes}. Say which column is what, for example: --columns {flag.format(first, second)}"
    )
