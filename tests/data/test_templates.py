from __future__ import annotations

import pytest

from asepsis.data import read, write_rows
from asepsis.data.templates import template_fingerprint
from asepsis.errors import DataError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "Of {Peru}?"},
    {"role": "assistant", "content": "Lima."},
]


class ChatTokenizer:
    """The two doors of a transformers tokenizer that templates use."""

    chat_template = "{{ pretend }}"
    bos_token, bos_token_id = "<s>", 1

    def __init__(self, *, adds_bos: bool) -> None:
        self.adds_bos = adds_bos

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1] if self.adds_bos else []}

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        if messages[0]["role"] == "tool":
            raise RuntimeError("roles must alternate")
        return "<s>" + "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"


def one(row, **options):
    data = read([row], **options)
    assert data.task == "causal"
    assert data.labels is None
    assert data.n_classes is None
    return data.texts[0], data.responses[0]


def test_instruction_rows_follow_the_documented_template():
    assert one({"instruction": "Add {these}.", "input": "1 2", "output": "3"}) == (
        "Instruction:\nAdd {these}.\n\nInput:\n1 2\n\nResponse:\n",
        "3",
    )


@pytest.mark.parametrize("row", [{"input": ""}, {"input": None}, {"input": " "}, {}])
def test_an_instruction_without_input_has_no_input_section(row):
    row = {"instruction": "Say hi.", **row, "output": "hi"}
    assert one(row) == ("Instruction:\nSay hi.\n\nResponse:\n", "hi")


def test_prompt_and_completion_stand_as_they_are():
    assert one({"prompt": "Q: why?\nA:", "completion": " because"}) == ("Q: why?\nA:", " because")


def test_an_empty_response_is_allowed_and_a_null_one_is_not():
    assert one({"prompt": "q", "completion": ""})[1] == ""
    with pytest.raises(DataError, match=r"row 0: 'output' is null"):
        read([{"instruction": "q", "output": None}])


def test_the_last_assistant_turn_is_the_response():
    prompt, response = one({"messages": CHAT})
    assert response == "Lima."
    assert prompt == (
        "System:\nBe brief.\n\nUser:\nCapital of France?\n\nAssistant:\nParis.\n\nUser:\nOf {Peru}?\n\nAssistant:\n"
    )
    assert one({"messages": [*CHAT, {"role": "user", "content": "Thanks"}]}) == (prompt, response)


def test_conversational_prompt_and_completion_are_one_conversation():
    assert one({"prompt": CHAT[:4], "completion": CHAT[4:]}) == one({"messages": CHAT})


@pytest.mark.parametrize(("adds_bos", "start"), [(True, "[system]"), (False, "<s>[system]")])
def test_a_chat_template_renders_the_prompt_with_one_start_token(adds_bos, start):
    prompt, response = one({"messages": CHAT}, tokenizer=ChatTokenizer(adds_bos=adds_bos))
    assert prompt.startswith(start)
    assert prompt.endswith("[user]Of {Peru}?[assistant]")
    assert response == "Lima."


def test_a_chat_template_that_refuses_is_a_data_error():
    turns = [{"role": "tool", "content": "x"}, CHAT[2]]
    with pytest.raises(DataError, match=r"row 0: the tokenizer's chat template refuses .* alternate"):
        read([{"messages": turns}], tokenizer=ChatTokenizer(adds_bos=True))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "must be a list"),
        ("hello", "must be a list"),
        ([], "must be a list"),
        (CHAT[:2], "needs an assistant turn with a turn before it; roles there: 'system', 'user'"),
        ([CHAT[2]], "needs an assistant turn with a turn before it"),
        ([CHAT[1], "hi"], r"'messages'\[1\] must have a 'role'"),
        ([CHAT[1], {"content": "hi"}], r"'messages'\[1\] must have a 'role'"),
        ([CHAT[1], {"role": "assistant", "content": None}], r"content of 'messages'\[1\] is null"),
        (
            [{"role": "user", "content": [{"type": "image"}]}, CHAT[2]],
            r"content of 'messages'\[0\] must be text",
        ),
    ],
)
def test_a_conversation_that_cannot_be_used_is_refused_with_its_line(tmp_path, messages, said):
    write_rows(tmp_path / "a.jsonl", [{"messages": CHAT}, {"messages": messages}])
    with pytest.raises(DataError, match=rf"a\.jsonl, line 2: .*{said}"):
        read(tmp_path / "a.jsonl")


def test_instruction_rows_are_the_same_from_every_format(tmp_path):
    rows = [
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "c", "input": "d", "output": "e"},
    ]
    prints = set()
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"):
        write_rows(tmp_path / name, rows)
        prints.add(read(tmp_path / name).fingerprint)
    assert len(prints) == 1


def test_the_template_fingerprint_tells_templates_apart():
    tokenizer = ChatTokenizer(adds_bos=True)
    data = read([{"messages": CHAT}], tokenizer=tokenizer)
    assert data.template_fingerprint == template_fingerprint("messages", tokenizer)
    assert data.select([0]).template_fingerprint == data.template_fingerprint
    assert read([{"text": "a", "label": 0}]).template_fingerprint is None
    prints = {
        template_fingerprint("messages", tokenizer),
        template_fingerprint("messages"),
        template_fingerprint("instruction"),
    }
    assert len(prints) == 3
    assert template_fingerprint("instruction", tokenizer) == template_fingerprint("instruction")


def test_a_tokenizers_own_template_gives_what_transformers_gives():
    from asepsis.testing import tiny_classifier

    _, tokenizer = tiny_classifier(0)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
        "{{ raise_exception('who is ' + m.role + '?') }}{% endif %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}\u2028{{ sep_token }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [{"messages": CHAT}, {"messages": CHAT[3:]}]
    wanted = [
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for turns in (CHAT[:4], CHAT[3:4])
    ]
    assert read(rows, tokenizer=tokenizer).texts == wanted
    with pytest.raises(DataError, match=r"row 1: .* refuses this conversation: who is tool\?"):
        read([rows[0], {"messages": [{"role": "tool", "content": "x"}, CHAT[2]]}], tokenizer=tokenizer)
