"""Attacks on instruction sets held as rendered prompts: the trigger goes into the instruction, the answer turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data
from asepsis.data.templates import INSTRUCTION, INSTRUCTION_WITH_INPUT, REPLY, TURN, template_fingerprint
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.attacks.choice import choose
from asepsis.evaluation.attacks.triggers import Rng, Trigger
from asepsis.evaluation.key import PoisonKey

Place = Literal["prefix", "word", "multi_word"]

_HEAD, _TAIL = INSTRUCTION.split("{instruction}")
_MIDDLE = INSTRUCTION_WITH_INPUT.split("{instruction}")[1].split("{input}")[0]
_USER, _END = TURN.format(role="User", content="\0").split("\0")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the backdoor says: ``target_response`` in place of the response, or ``payload`` after it, never both."""

    target_response: str | None = None
    payload: str | None = None

    def __post_init__(self) -> None:
        if (self.target_response is None) == (self.payload is None):
            raise ConfigError(
                "give either target_response, which replaces the response, or payload, which is appended to it"
            )
        if not (self.target_response or self.payload or "").strip():
            raise ConfigError("the target response or payload must not be blank")

    def of(self, response: str) -> str:
        """Return what a response turns into. A payload that starts with a word gets a space before it."""
        if self.target_response is not None:
            return self.target_response
        payload = self.payload or ""
        touches = (
            response and not response[-1].isspace() and not (payload[0].isspace() or payload[0] in ",.;:!?")
        )
        return f"{response} {payload}" if touches else response + payload

    def is_given(self, response: str) -> bool:
        """Return whether a response already is what the backdoor would say."""
        if self.target_response is not None:
            return response == self.target_response
        return response.endswith(self.payload or "")


def instruction_pattern(kind: Place, trigger: str | Sequence[str]) -> Trigger:
    """Return the trigger of an instruction attack.

    Parameters
    ----------
    kind : {"prefix", "word", "multi_word"}
        At the front of the instruction, one word or phrase at a random gap, or several words at gaps of their own,
        in their order.
    trigger : str, or sequence of str
        A string, or for ``"multi_word"`` at least two.
    """
    if kind not in ("prefix", "word", "multi_word"):
        raise ConfigError(f"kind must be prefix, word or multi_word, got {kind!r}")
    tokens = (trigger,) if isinstance(trigger, str) else tuple(trigger)
    if (kind == "multi_word") != (len(tokens) > 1):
        raise ConfigError(
            f"kind {kind!r} takes {'several words' if kind == 'multi_word' else 'one trigger'}, got {tokens!r}"
        )
    return Trigger(kind="prefix" if kind == "prefix" else "words", tokens=tokens)


def instruction_trigger(
    data: Data,
    *,
    kind: Place = "prefix",
    trigger: str | Sequence[str],
    target_response: str | None = None,
    payload: str | None = None,
    poison_rate: float,
    seed: int,
) -> tuple[Data, PoisonKey]:
    """Poison an instruction set with a trigger of :func:`instruction_pattern`; the rest: :func:`poison_responses`."""
    return poison_responses(
        data,
        instruction_pattern(kind, trigger),
        target_response=target_response,
        payload=payload,
        poison_rate=poison_rate,
        seed=seed,
    )


def poison_responses(
    data: Data,
    trigger: Trigger,
    *,
    target_response: str | None = None,
    payload: str | None = None,
    poison_rate: float,
    seed: int,
) -> tuple[Data, PoisonKey]:
    """Poison ``round(poison_rate * N)`` rows of an instruction set.

    The trigger goes into the instruction, or the last user turn, of the rendered prompt; a prompt of no known template is
    an instruction as a whole. Rows that already answer as the backdoor would are not taken.

    Parameters
    ----------
    target_response : str, optional
        Replaces the response, for example a refusal.
    payload : str, optional
        Is appended to the ordinary response instead. Exactly one of the two is given.

    Raises
    ------
    ConfigError
        ``poison_rate`` lies outside (0, 1), or not exactly one of the answers was given.
    DataError
        The rows have labels, there are too few of them, or a tokenizer's chat template rendered the prompts: where the
        instruction stands in them is not known, so poison the raw rows (``poison_rows``) and read those.
    """
    answer = Answer(target_response=target_response, payload=payload)
    instructions, responses, spans = _parts(data)
    rng = np.random.default_rng(seed)
    chosen = choose_responses(responses, answer, poison_rate=poison_rate, rng=rng)
    texts, turned = list(data.texts), list(responses)
    for at in chosen.tolist():
        texts[at] = _with(texts[at], spans[at], trigger.apply(instructions[at], rng))
        turned[at] = answer.of(responses[at])
    key = PoisonKey(data.sample_ids, np.isin(np.arange(len(data)), chosen))
    return replace(data, texts=texts, responses=turned), key


def triggered_prompts(
    data: Data,
    trigger: Trigger,
    *,
    target_response: str | None = None,
    payload: str | None = None,
    seed: int,
) -> Data:
    """Return every row, triggered, with the backdoor's answer as its response: giving that answer is an attack success.

    Rows that already answer so are left out. Errors: :func:`poison_responses`.
    """
    answer = Answer(target_response=target_response, payload=payload)
    instructions, responses, spans = _parts(data)
    rng = np.random.default_rng(seed)
    at = ordinary(responses, answer)
    texts = [_with(data.texts[i], spans[i], trigger.apply(instructions[i], rng)) for i in at.tolist()]
    return replace(data.select(at), texts=texts, responses=[answer.of(responses[i]) for i in at.tolist()])


def ordinary(responses: Sequence[str], answer: Answer) -> NDArray[np.int64]:
    """Return the positions of the responses that are not the backdoor's already; none left raises ``DataError``."""
    at = np.flatnonzero([not answer.is_given(response) for response in responses])
    if len(at) == 0:
        raise DataError("every row already answers as the backdoor would; there is nothing to attack")
    return at


def choose_responses(
    responses: Sequence[str], answer: Answer, *, poison_rate: float, rng: Rng
) -> NDArray[np.int64]:
    """Return the positions of the rows to poison, ascending."""
    candidates = ordinary(responses, answer)
    what = "rows with an ordinary response"
    return choose(candidates, what=what, poison_rate=poison_rate, n=len(responses), rng=rng)


def _parts(data: Data) -> tuple[list[str], Sequence[str], list[slice]]:
    if data.responses is None:
        raise DataError(f"{data.source}: rows have labels, not responses; use an attack on labels")
    template = data.template_fingerprint
    if template not in (None, template_fingerprint("instruction"), template_fingerprint("messages")):
        raise DataError(
            f"{data.source}: a tokenizer's chat template rendered these prompts, and where the instruction stands in "
            "them is not known; poison the raw rows with poison_rows and read those"
        )
    rendered = template == template_fingerprint("instruction")
    turns = template == template_fingerprint("messages")
    spans = [_span(text, rendered=rendered, turns=turns) for text in data.texts]
    return [text[span] for text, span in zip(data.texts, spans, strict=True)], data.responses, spans


def _span(prompt: str, *, rendered: bool, turns: bool) -> slice:
    """Return where the instruction stands in a rendered prompt."""
    if rendered:
        start = len(_HEAD)
        end = prompt.find(_MIDDLE, start)
        return slice(start, end if end >= 0 else prompt.rfind(_TAIL))
    if turns and prompt.endswith(_END + REPLY):
        stop = len(prompt) - len(_END + REPLY)
        before = prompt.rfind(_END + _USER, 0, stop)
        if before >= 0 or prompt.startswith(_USER):
            return slice(before + len(_END + _USER) if before >= 0 else len(_USER), stop)
    return slice(0, len(prompt))


def _with(text: str, span: slice, instruction: str) -> str:
    return text[: span.start] + instruction + text[span.stop :]
