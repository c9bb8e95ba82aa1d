"""Expressions of honest tokenizers and adapters are taken; those that could take for ever are refused."""

from __future__ import annotations

import re
import time

import pytest

from asepsis.core.weights.patterns import cost
from asepsis.core.weights.tokenizers import admit_tokenizer
from asepsis.errors import ModelError

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d"
# by the models that made them known; each in the spelling of its tokenizer.json
HONEST = {
    "GPT-2": WORDS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": rf"(?i:{WORDS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    rf"(?i:{WORDS})?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "cl100k as tiktoken has it": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++"
    r"[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "DeepSeek": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Kimi": r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}&&[^\p{Han}]]*[\p{Ll}\p{Lm}&&[^\p{Han}]]+",
    "BLOOM": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "T5": r" {2,}",
    "CLIP": r"\s+",
    "Falcon": r"[0-9][0-9][0-9]",
    "groups of three digits": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
    "SMILES": r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>|\*|\$|\%[0-9]{2})",
}
MODULES = [
    r".*\.(q_proj|v_proj)",
    r"^(?!.*patch_embed).*(?:lin|fc).*$",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    r"(.*\.)?layers.\d+\.(self_attn|mlp)\.[qk]_proj",
    r"(?:.*?(?:vision|visual).*?(?:self_attn|mlp).*?(?:k_proj|fc1).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.up_proj)",
    r".*\.layers\.([0-9]|1[0-5])\..*",
]
ENDLESS = [
    *("(a+)+", "(a|a)*", "(a?)*", "(a?){30}", "(aa?)+", "(a|b){2}", "(a(b)*)+", "(?=a*)*", "((a*)*)*"),
    *(r"(.*)\1", r"\k<x>", r"(?<x>a\g<x>?)", "(?R)", "(?P>x)", "(?P=x)", "(?(1)a|b)"),
    *("a**", "a+*", "a{2}{3}", "(a{2,3}+)+", "(a{1,3}+)b", "(a+){2,3}+"),
    *("(?~a)", "(?x)a", "x(?i)a|b", "(?#x)a", "(?{a})", "(*FAIL)", r"\c[(a+)+]", r"\Q(\E"),
    *("(", "a)", "[a", "[[a]", "a\\", "(" * 5000, "[" * 5000 + "a]", "a" * 20_000),
]


@pytest.mark.parametrize("name", HONEST)
def test_patterns_of_known_tokenizers_are_taken(name):
    found = cost(HONEST[name], nested=True)
    assert found.loops <= 2
    assert found.choices <= 6


@pytest.mark.parametrize("pattern", MODULES)
def test_patterns_of_honest_adapters_are_taken(pattern):
    found = cost(pattern)
    assert 100**found.loops * 2**found.choices <= 4 * 100**4


@pytest.mark.parametrize("pattern", ENDLESS)
@pytest.mark.parametrize("nested", [False, True])
def test_what_could_take_for_ever_is_refused(pattern, nested):
    if pattern.startswith("[[") and not nested:
        return  # Python reads one class of two letters
    with pytest.raises(ValueError):
        cost(pattern, nested=nested)


@pytest.mark.parametrize(
    ("pattern", "loops", "choices"),
    [
        ("abc", 0, 0),
        ("a*b*|c*", 2, 0),
        ("(a*|b*c*)d?", 2, 1),
        ("(?:ab)*", 1, 0),
        ("a{2}", 0, 0),
        ("a{1,3}", 0, 1),
        ("a{1,300}", 1, 0),
        ("a{3,}", 1, 0),
        (r"[*+(]\*", 0, 0),
        ("(?i)a+?b*+", 2, 0),
        (r"\x{1F600}+", 1, 0),
        ("[]a]", 0, 0),
    ],
)
def test_loops_and_choices_of_the_costliest_way_are_counted(pattern, loops, choices):
    found = cost(pattern)
    assert (found.loops, found.choices) == (loops, choices)


def test_a_class_ends_where_its_engine_ends_it():
    # to Python a class holds an open bracket; Oniguruma opens another class
    with pytest.raises(ValueError, match="more than one way"):
        cost("[[:a:](a+)+]")
    assert cost("[[:alpha:](a+)+]", nested=True).loops == 0


@pytest.mark.parametrize("pattern", ["a*a*b", "(?:aa)*(?:aaa)*b", "(a|b)?a*(b|a)?a*c", "a?a?a?a?a?a?a*b"])
def test_what_is_taken_ends_within_its_bound(pattern):
    found = cost(pattern)
    assert found.loops <= 2
    began = time.monotonic()
    assert re.fullmatch(pattern, "a" * 300) is None
    assert time.monotonic() - began < 5


def test_a_tokenizer_of_known_patterns_is_admitted(tmp_path):
    import json

    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in HONEST.values()
    ]
    forms = ["NFKD", "StripAccents", "Lowercase"]
    content = {
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
                *({"type": form} for form in forms),
                {"type": "Precompiled", "precompiled_charsmap": ""},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*steps, {"type": "Metaspace", "replacement": "▁"}],
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    admit_tokenizer(tmp_path)
    content["pre_tokenizer"]["pretokenizers"].append({"type": "ByteLevel"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="512 times as long"):
        admit_tokenizer(tmp_path)
