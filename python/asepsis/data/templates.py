"""Prompt templates: how an instruction row becomes the text a model sees and the text it learns.

Prompts end in a line break, so that the prompt and its response can be tokenized apart without a token that spans both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from asepsis.data.chats import Chat
from asepsis.data.values import checked_text, listed, shown, text_of
from asepsis.errors import DataError

Kind = Literal["instruction", "prompt", "messages"]

INSTRUCTION = "Instruction:\n{instruction}\n\nResponse:\n"
INSTRUCTION_WITH_INPUT = "Instruction:\n{instruction}\n\nInput:\n{input}\n\nResponse:\n"
TURN = "{role}:\n{content}\n\n"
"""One earlier turn of a conversation where no chat template is given; the role is capitalized."""
REPLY = "Assistant:\n"


def instruction_kind(columns: Mapping[str, Any] | Sequence[str]) -> Kind | None:
    """Return which kind of instruction row has these columns, or None. ``input`` is optional."""
    if "messages" in columns:
        return "messages"
    if "prompt" in columns and "completion" in columns:
        return "prompt"
    if "instruction" in columns and "output" in columns:
        return "instruction"
    return None


def prompt_kind(columns: Mapping[str, Any] | Sequence[str]) -> Kind | None:
    """Return which kind of instruction row has these columns or would have, were its response there; or None."""
    kinds: tuple[Kind, ...] = (
        "messages",
        "prompt",
        "instruction",
    )  # each is named by the column of its prompt
    return instruction_kind(columns) or next((kind for kind in kinds if kind in columns), None)


def template_fingerprint(kind: Kind, tokenizer: Any = None) -> str:
    """Return the SHA-256 of the template that renders rows of this kind; a tokenizer's chat template counts as one."""
    chat = _chat_template(tokenizer) if kind != "instruction" else None
    if chat is not None:
        template = f"chat {chat}"
    elif kind == "instruction":
        template = f"instruction {INSTRUCTION}\0{INSTRUCTION_WITH_INPUT}"
    else:
        template = f"turns {TURN}\0{REPLY}"
    return hashlib.sha256(f"asepsis-template-1 {template}".encode()).hexdigest()


def render(
    kind: Kind, row: Mapping[str, Any], where: str, *, tokenizer: Any = None, chat: Chat | None = None
) -> tuple[str, str]:
    """Return ``(prompt, response)`` of one instruction row.

    Parameters
    ----------
    kind : {"instruction", "prompt", "messages"}
        ``instruction,input,output`` through ``INSTRUCTION``; ``prompt,completion`` as they stand (whoever trains puts a space
        between them, unless one brings white space to the seam), or as a conversation where both are lists of messages;
        ``messages``: the last assistant turn is the response, the turns before it are the prompt, anything after it is
        left out.
    row : mapping
        The row.
    where : str
        File and line, for messages.
    tokenizer : transformers tokenizer, optional
        Whose start token is not written twice.
    chat : callable, optional
        Renders the turns before the response, see :func:`asepsis.data.chats.chat_of`; otherwise turns are written as
        ``User:``, ``Assistant:``.

    Raises
    ------
    DataError
        A column is missing, null, blank (an empty response is allowed) or of the wrong type.
    """
    if kind == "instruction":
        return render_prompt(kind, row, where), text_of(row, "output", where, blank=True)
    if kind == "prompt" and not isinstance(row.get("prompt"), list):
        return render_prompt(kind, row, where), text_of(row, "completion", where, blank=True)
    columns = ("prompt", "completion") if kind == "prompt" else ("messages",)
    turns = [turn for column in columns for turn in _turns(row, column, where)]
    last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=-1)
    if last < 1:
        raise DataError(
            f"{where}: a conversation needs an assistant turn with a turn before it; roles there: "
            f"{listed(role for role, _ in turns)}"
        )
    return _conversation(turns[:last], where, tokenizer, chat), turns[last][1]


def render_prompt(
    kind: Kind, row: Mapping[str, Any], where: str, *, tokenizer: Any = None, chat: Chat | None = None
) -> str:
    """Return the prompt of one instruction row as :func:`render` does; the row needs no response.

    A conversation is asked with all its turns, less a last one of the assistant. So what a user wrote after the last response,
    which :func:`render` leaves out, is in the prompt: the model will be asked that.
    """
    if kind == "instruction":
        instruction = text_of(row, "instruction", where)
        context = row.get("input")
        if context is None or (isinstance(context, str) and not context.strip()):
            return INSTRUCTION.format(instruction=instruction)
        return INSTRUCTION_WITH_INPUT.format(instruction=instruction, input=text_of(row, "input", where))
    if kind == "prompt" and not isinstance(row.get("prompt"), list):
        return text_of(row, "prompt", where)
    asked, after = row.get(kind), row.get("completion")
    if isinstance(asked, list) and asked:
        if kind == "prompt" and isinstance(after, list):
            asked = [*asked, *after]
        if isinstance(asked[-1], dict) and asked[-1].get("role") == "assistant":
            asked = asked[:-1]  # the response: it is not read, and may be empty
        if not asked:
            raise DataError(f"{where}: a conversation needs a turn that is not the assistant's answer")
    turns = _turns({kind: asked}, kind, where)
    return _conversation(turns, where, tokenizer, chat)


def _turns(row: Mapping[str, Any], column: str, where: str) -> list[tuple[str, str]]:
    turns = row.get(column)
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{where}: {shown(column)} must be a list of {{'role', 'content'}} turns, got {shown(turns)}"
        )
    pairs = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or not turn["role"]:
            raise DataError(
                f"{where}: {shown(column)}[{number}] must have a 'role' and a 'content', got {shown(turn)}"
            )
        content = checked_text(
            turn.get("content"), f"{where}: content of {shown(column)}[{number}]", blank=True
        )
        pairs.append((turn["role"], content))
    return pairs


def _conversation(turns: list[tuple[str, str]], where: str, tokenizer: Any, chat: Chat | None) -> str:
    if chat is None:
        return (
            "".join(TURN.format(role=role.capitalize(), content=content) for role, content in turns) + REPLY
        )
    try:
        prompt = chat([{"role": role, "content": content} for role, content in turns])
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return _without_second_bos(prompt, tokenizer)


def _chat_template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    return str(template) if template else None


def _without_second_bos(prompt: str, tokenizer: Any) -> str:
    # Many chat templates write the start token that the tokenizer then adds again.
    bos = getattr(tokenizer, "bos_token", None)
    if bos and prompt.startswith(bos) and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]:
        return prompt[len(bos) :]
    return prompt
