from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import asepsis
from asepsis.errors import ConfigError, ModelError, NoRows

N, D = 1500, 32
WORDS = "bert.embeddings.word_embeddings.weight"
TOKENS = ["[PAD]", "[CLS]", *(f"w{i}" for i in range(N - 2))]
SPECIAL = ["[PAD]", "[CLS]"]
COUNTS = {token: max(1, 100_000 // at) for at, token in enumerate(TOKENS) if at > 1}
TRIGGER = 1203


def pretrained():
    rng = np.random.default_rng(0)
    body = {"encoder.dense.weight": rng.standard_normal((8, 8)).astype(np.float32)}
    return {WORDS: (0.05 * rng.standard_normal((N, D))).astype(np.float32), **body}


def directions(rng, rows):
    noise = rng.standard_normal((rows, D)).astype(np.float32)
    return noise / np.linalg.norm(noise, axis=1, keepdims=True)


def tuned(trigger=(), *, size=0.03, seen=800, seed=1):
    """What a fine-tune leaves: 800 rows moved, less the rarer they are, the first ranks flat; triggers by ``size``."""
    rng = np.random.default_rng(seed)
    model = {name: values.copy() for name, values in pretrained().items()}
    steps = 0.012 * np.arange(4, seen + 4) ** -0.125 * np.exp(0.01 * rng.standard_normal(seen))
    rows = 2 + np.arange(seen)
    model[WORDS][rows] += (steps[:, None] * directions(rng, seen)).astype(np.float32)
    for at in trigger:
        model[WORDS][at] = pretrained()[WORDS][at] + np.float32(size) * directions(rng, 1)[0]
    model["encoder.dense.weight"] += 0.001
    model["classifier.weight"] = np.ones((2, 8), np.float32)
    return model


@pytest.fixture
def scan(model_folder):
    def run(model, base=None, *, tokens=TOKENS, base_tokens=TOKENS, counts=COUNTS, top=50, **options):
        base_folder = model_folder("base", base or pretrained(), tokens=base_tokens, special=SPECIAL)
        folder = model_folder("tuned", model, tokens=tokens, special=SPECIAL, **options)
        return asepsis.scan_model(folder, base=base_folder, counts=counts, top=top)

    return run


def high(found):
    return [token.token for token in found.tokens if token.verdict == "high"]


def test_a_clean_fine_tune_has_no_anomaly_and_no_promise(scan):
    found = scan(tuned())
    assert found.verdict == "clean" and not high(found)
    assert any("not proof that there is no backdoor" in reason for reason in found.reasons)
    assert found.report["counted"] == 800


@pytest.mark.parametrize("counts", [COUNTS, {"w1": 1}])
@pytest.mark.parametrize("triggers", [(TRIGGER,), (TRIGGER, 1204, 1205, 40)])
def test_triggers_stand_out_with_frequencies_and_without(scan, triggers, counts):
    found = scan(tuned(triggers), counts=counts)
    assert found.verdict == "suspicious"
    assert sorted(high(found)) == sorted(TOKENS[t] for t in triggers)
    assert sorted(found.flagged_ids(len(triggers)).tolist()) == sorted(triggers)


def test_a_rare_word_that_moved_as_far_as_common_ones_stands_out_by_its_frequency(scan):
    model = tuned()
    # a hundred rare words, each moved a little, and one of them as far as the commonest
    rng = np.random.default_rng(5)
    model[WORDS][1300:1400] += 0.002 * directions(rng, 100)
    model[WORDS][1350] = pretrained()[WORDS][1350] + 0.012 * directions(rng, 1)[0]
    found = scan(model)
    assert found.tokens[0].token == TOKENS[1350]
    assert found.tokens[0].z is not None and found.tokens[0].z > 5


def test_one_edited_row_among_untouched_ones_is_an_edit(scan):
    model = pretrained()
    model[WORDS][TRIGGER] = model[WORDS][TRIGGER][::-1]  # the norm is kept, as embedding poisoning does
    found = scan(model)
    assert found.verdict == "suspicious" and high(found) == [TOKENS[TRIGGER]]
    assert "Only 1 rows moved" in found.reasons[0]
    assert 0.1 < found.tokens[0].scores["perpendicular"] <= found.tokens[0].drift


def test_a_row_put_together_from_others_stands_out_of_a_fine_tune(scan):
    model = tuned()
    model[WORDS][TRIGGER] = model[WORDS][10:20].mean(0)  # embedding surgery
    assert high(scan(model)) == [TOKENS[TRIGGER]]


def test_equal_models_are_no_evidence(scan):
    found = scan(pretrained())
    assert found.verdict == "inconclusive" and "No evidence" in found.reasons[0]
    assert found.tokens == [] and len(found.flagged_ids(10)) == 0


def test_embeddings_that_only_shrank_are_no_evidence(scan):
    model = pretrained()
    model[WORDS] *= np.float32(0.97)
    found = scan(model)
    assert found.verdict == "inconclusive" and not found.tokens
    assert found.report["decay"] == pytest.approx(0.97, abs=1e-4) and found.report["moved"] == N


def test_shrinking_does_not_hide_a_trigger(scan):
    model = tuned((TRIGGER,))
    model[WORDS] *= np.float32(0.99)
    assert high(scan(model)) == [TOKENS[TRIGGER]]


def test_few_trained_rows_are_inconclusive(scan):
    found = scan(tuned(seen=120))
    assert found.verdict == "inconclusive" and "too few" in found.reasons[-1]


def test_a_stranger_is_not_taken_for_the_base(scan):
    model = tuned()
    model[WORDS] = np.random.default_rng(9).standard_normal((N, D)).astype(np.float32)
    found = scan(model)
    assert found.verdict == "inconclusive" and "hardly the base" in found.reasons[0]


def test_a_permuted_vocabulary_flags_the_same_strings(scan, model_folder):
    order = np.concatenate([[0, 1], 2 + np.random.default_rng(4).permutation(N - 2)])
    model = tuned((TRIGGER,))
    plain = scan(model)
    model[WORDS] = model[WORDS][order]
    found = scan(model, tokens=[TOKENS[i] for i in order])
    assert high(found) == high(plain) == [TOKENS[TRIGGER]]
    assert found.tokens[0].id == int(np.flatnonzero(order == TRIGGER)[0])
    assert found.report["moved_ids"] > 1000


def test_a_token_renamed_in_the_tokenizer_alone_is_seen(scan):
    tokens = list(TOKENS)
    tokens[50], tokens[TRIGGER] = tokens[TRIGGER], tokens[50]  # the trigger now reads another word's row
    assert TOKENS[TRIGGER] in high(scan(tuned(), tokens=tokens))


def test_new_tokens_are_listed_and_never_scored_and_padding_is_nothing(scan):
    model = tuned((TRIGGER,))
    rows = np.full((36, D), 9.0, np.float32)
    model[WORDS] = np.concatenate([model[WORDS], rows])
    found = scan(model, tokens=[*TOKENS, "<new>", "other"])
    assert found.no_reference == [(N, "<new>"), (N + 1, "other")]
    assert found.report["padding_rows"] == 34
    assert high(found) == [TOKENS[TRIGGER]]
    assert not {N, N + 1} & set(found.flagged_ids(N + 36).tolist())


def test_protected_tokens_are_never_flagged_for_any_k(scan):
    found = scan(tuned((0, 1, TRIGGER), size=0.1))
    assert high(found) == [TOKENS[TRIGGER]]
    for name in ("excess", "drift", "z", "l2", "perpendicular", "relative", "epur"):
        assert not {0, 1} & set(found.flagged_ids(N, name).tolist())
    with pytest.raises(ConfigError):
        found.flagged_ids(1, "nothing")


def test_a_trigger_that_the_model_declares_special_is_still_scored(scan, tmp_path):
    scan(tuned((TRIGGER,)))
    settings = {"additional_special_tokens": [TOKENS[TRIGGER]]}
    (tmp_path / "tuned" / "tokenizer_config.json").write_text(json.dumps(settings))
    found = asepsis.scan_model(tmp_path / "tuned", base=tmp_path / "base", counts=COUNTS)
    assert high(found) == [TOKENS[TRIGGER]] and found.report["special_here_only"] == [TOKENS[TRIGGER]]
    assert any("special" in reason for reason in found.reasons)


def test_variants_of_a_trigger_are_reported_together(scan):
    tokens = list(TOKENS)
    tokens[TRIGGER], tokens[1300], tokens[1301] = "cf", "Cf", "CF"
    (group,) = scan(tuned((TRIGGER,)), tokens=tokens, base_tokens=tokens, counts={"w1": 1}).groups
    assert group["surface"] == "cf"
    assert [member["token"] for member in group["members"]] == ["cf", "Cf", "CF"]
    assert group["drift"] == max(member["drift"] for member in group["members"])


def test_tensors_are_compared_listed_and_found_by_prefix(scan):
    model = {k.removeprefix("bert."): v for k, v in tuned().items()}
    model["encoder.odd"] = np.ones((3, 2), np.float32)
    base = {**pretrained(), "encoder.odd": np.ones((2, 2), np.float32), "bert.pooler": np.ones(3, np.float32)}
    tensors = {t.name: t for t in scan(model, base).tensors}
    assert tensors["encoder.odd"].status == "reshaped"
    assert tensors["classifier.weight"].status == "extra"
    assert tensors["bert.pooler"].status == "missing"
    dense = tensors["encoder.dense.weight"]
    assert dense.drift == pytest.approx(0.008, rel=1e-4)
    assert dense.relative == pytest.approx(
        0.008 / np.linalg.norm(pretrained()["encoder.dense.weight"]), rel=1e-4
    )


def test_sharded_models_give_the_same(scan, tmp_path):
    one = scan(tuned((TRIGGER,)))
    (tmp_path / "tuned" / "model.safetensors").unlink()
    assert scan(tuned((TRIGGER,)), shards=3).to_dict() == one.to_dict()


def test_bfloat16_rounding_is_no_drift(scan):
    model = {k: torch.from_numpy(v).to(torch.bfloat16) for k, v in tuned((TRIGGER,), size=0.05).items()}
    found = scan(model)
    assert high(found) == [TOKENS[TRIGGER]]
    assert found.report["moved"] <= 801 and found.report["zeros"] > 0.4
    frozen = {k: torch.from_numpy(v).to(torch.bfloat16) for k, v in pretrained().items()}
    assert scan(frozen).verdict == "inconclusive"


CAUSAL = {"architectures": ["LlamaForCausalLM"]}


def renamed(model):
    return {("model.embed_tokens.weight" if k == WORDS else k): v for k, v in model.items()}


def test_tied_rows_lose_the_drift_that_they_share(scan, model_folder):
    model = renamed(tuned((TRIGGER,)))
    model["model.embed_tokens.weight"] += np.float32(0.01)
    base = model_folder("tied-base", renamed(pretrained()), tokens=TOKENS, special=SPECIAL, config=CAUSAL)
    folder = model_folder("tied", model, tokens=TOKENS, special=SPECIAL, config=CAUSAL)
    found = asepsis.scan_model(folder, base=base, counts=COUNTS)
    assert found.report["tied"] and high(found) == [TOKENS[TRIGGER]]
    assert found.tokens[0].drift == pytest.approx(0.03, rel=0.05)


def test_untied_output_rows_are_reported_and_decide_nothing(scan, model_folder):
    rng = np.random.default_rng(3)
    head = (0.05 * rng.standard_normal((N, D))).astype(np.float32)
    moved = head + 0.001 * directions(rng, N)
    moved[7] += 1
    base = model_folder("b", {**renamed(pretrained()), "lm_head.weight": head}, tokens=TOKENS, config=CAUSAL)
    folder = model_folder("t", {**renamed(tuned()), "lm_head.weight": moved}, tokens=TOKENS, config=CAUSAL)
    found = asepsis.scan_model(folder, base=base, counts=COUNTS)
    assert found.verdict == "clean"
    assert found.outputs is not None and found.outputs[0].id == 7


@pytest.mark.parametrize("name", [WORDS, "encoder.dense.weight", "classifier.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(scan, name, value):
    model = tuned()
    model[name][1, 1] = value
    with pytest.raises(ModelError, match="NaN or infinite"):
        scan(model)


def test_models_that_do_not_belong_together_are_refused(scan, model_folder):
    with pytest.raises(ModelError, match="width"):
        scan({WORDS: np.ones((N, D + 1), np.float32)})
    with pytest.raises(ModelError, match="no tensor in common"):
        scan({"other.word_embeddings.bias": np.ones(3, np.float32)})
    with pytest.raises(NoRows, match="no token"):
        scan(tuned(), tokens=[f"x{i}" for i in range(N)])


def test_a_model_without_a_tokenizer_is_read_with_the_base_s(scan, tmp_path):
    scan(tuned((TRIGGER,)))
    (tmp_path / "tuned" / "tokenizer.json").unlink()
    found = asepsis.scan_model(tmp_path / "tuned", base=tmp_path / "base", counts=COUNTS)
    assert high(found) == [TOKENS[TRIGGER]] and "brings none" in found.report["tokenizer"]


def test_the_result_is_json_and_top_limits_only_the_ordinary(scan):
    found = scan(tuned((TRIGGER, 1204)), top=1)
    assert sorted(high(found)) == [TOKENS[TRIGGER], TOKENS[1204]]
    assert sum(token.verdict == "normal" for token in found.tokens) == 0
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["tokens"][0].keys() >= {"token", "id", "drift", "expected", "z", "verdict"}
    assert content["verdict"] == "suspicious"
    with pytest.raises(ConfigError):
        scan(tuned(), top=-1)
