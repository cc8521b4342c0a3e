"""Conversations to text, with the span of each learned answer: the tokenizer's own template, or a plain one."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError

from budwood.errors import BadConfig, BadData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from budwood.data.corpus import Turn

Template = Literal["auto", "chat", "plain"]


@dataclass(frozen=True, slots=True)
class Rendering:
    """A text and the [start, end) of what is learned in it; each span ends with a stop token's text."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Style:
    """How conversations are written for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    template: Literal["chat", "plain"]
    eos: str
    stops: dict[str, int]
    """Text of every token that may end an answer, to its id."""

    def render(self, turns: Sequence[Turn]) -> list[Rendering]:
        """The text of a conversation up to its last learned answer; several, one per answer, where the template
        writes earlier turns differently once later ones follow; none if nothing is learned.

        Raises BadData with what is wrong, for the caller to name the row.
        """
        learned = [place for place, turn in enumerate(turns) if turn.learned]
        if not learned:
            return []
        for place in learned:
            self._refuse_stop_inside(turns[place].content)
        turns = turns[: learned[-1] + 1]
        if self.template == "plain":
            return [_plain(turns, self.eos)]
        answers = [self._answer(turns[: place + 1]) for place in learned]
        last = answers[-1]
        if all(last.text.startswith(answer.text) for answer in answers[:-1]):
            return [Rendering(last.text, tuple(answer.spans[0] for answer in answers))]
        return answers

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The text in front of the next answer, as `render` writes it."""
        if self.template == "plain":
            return _plain(turns, self.eos).text
        return self._chat(turns, True)

    def _answer(self, turns: Sequence[Turn]) -> Rendering:
        """The text up to the stop token of the last turn, which is learned from where generation would start."""
        if len(turns) == 1:
            raise BadData("the conversation starts with an answer; put a user message before it")
        head, whole = self._chat(turns[:-1], True), self._chat(turns, False)
        start = len(head) if whole.startswith(head) else len(os.path.commonprefix([head, whole]))
        if start < len(head) and start < len(self._chat(turns[:-1], False)):
            raise BadData(
                "this tokenizer's chat template writes the turns before an answer differently once the answer is "
                "there, so what is learned cannot be located; use template 'plain'"
            )
        ends = [place + len(stop) for stop in self.stops if (place := whole.find(stop, start)) >= 0]
        text = whole[: min(ends)] if ends else whole.rstrip() + self.eos
        return Rendering(text, ((start, len(text)),))

    def _refuse_stop_inside(self, answer: str) -> None:
        inside = [stop for stop in self.stops if stop in answer]
        if inside:
            raise BadData(f"an answer holds {inside[0]!r}, which this tokenizer reads as the end; take it out")

    def _chat(self, turns: Sequence[Turn], ask: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise BadData(
                f"this tokenizer's chat template refuses the turns {roles}: {error}; "
                "write turns it takes, or use template 'plain'"
            ) from error


def style_for(tokenizer: PreTrainedTokenizerBase, template: Template, stop_ids: Collection[int] = ()) -> Style:
    """How this tokenizer's conversations are written. Raises BadConfig if the template or an eos is lacking."""
    if template not in ("auto", "chat", "plain"):
        raise BadConfig(f"template is {template!r}; it must be auto, chat or plain")
    if template == "chat" and not tokenizer.chat_template:
        raise BadConfig("this tokenizer has no chat template; use template 'plain' (or 'auto')")
    if tokenizer.eos_token_id is None:
        raise BadConfig("this tokenizer has no eos token to end an answer with; set tokenizer.eos_token first")
    eos = str(tokenizer.eos_token)
    stops = {str(tokenizer.convert_ids_to_tokens(int(stop))): int(stop) for stop in stop_ids}
    stops[eos] = int(tokenizer.eos_token_id)
    if template == "plain" or not tokenizer.chat_template:
        return Style(tokenizer, "plain", eos, stops)
    return Style(tokenizer, "chat", eos, stops | _closing(tokenizer))


def _closing(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The special token that the chat template puts after an answer, if it does: '<end_of_turn>' and its id.

    It ends answers even where neither the tokenizer's eos nor the generation config names it.
    """
    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError as error:
        raise BadConfig(f"this tokenizer's chat template fails: {error}; use template 'plain'") from error
    tail = text[text.rfind("answer") :]
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = [(tail.find(token), token) for token in special if token in tail]
    if not found:
        return {}
    token = min(found)[1]
    return {token: int(tokenizer.convert_tokens_to_ids(token))}


def _plain(turns: Sequence[Turn], eos: str) -> Rendering:
    """`question answer<eos>question answer<eos>...`; a system message stands in front, an empty line between.

    The space before an answer is part of the answer; it is left out where either side has white space already.
    """
    text, spans, before = "", [], ""
    for turn in turns:
        if turn.role == "assistant":
            bare = not text or before == "assistant" or text[-1].isspace() or turn.content[:1].isspace()
            start = len(text)
            text += ("" if bare else " ") + turn.content + eos
            if turn.learned:
                spans.append((start, len(text)))
        else:
            text += ("" if before in ("", "assistant") else "\n\n") + turn.content
        before = turn.role
    return Rendering(text, tuple(spans))
