"""Attacks on classes: which rows, which labels, where the trigger stands."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asepsis.data import Data
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.attacks import (
    ADDSENT,
    BADNETS,
    Trigger,
    addsent,
    badnets,
    from_file,
    poison_labels,
    triggered_test,
)

N = 200
SENTENCE = "I watch this 3D movie"


def made(n: int = N, n_classes: int = 4) -> Data:
    """Rows whose ids are neither their positions nor in order, classes in turn, no trigger anywhere."""
    return Data(
        task="classification",
        texts=[f"row  {i}\tof the\nset ." for i in range(n)],
        labels=np.arange(n) % n_classes,
        sample_ids=1000 - 3 * np.arange(n),
        n_classes=n_classes,
    )


def versions(data: Data) -> list[str]:
    return [f"when it is row {i} , cf" for i in range(len(data))]


ATTACKS = {
    "badnets": lambda data, **plan: badnets(data, **plan),
    "addsent": lambda data, **plan: addsent(data, sentence="oh cf my", **plan),
    "from_file": lambda data, **plan: from_file(data, versions(data), **plan),
}


@pytest.fixture(params=ATTACKS.values(), ids=ATTACKS.keys())
def attack(request):
    return request.param


def has_word(text: str, word: str) -> bool:
    return word in text.split()


@pytest.mark.parametrize("clean_label", [False, True])
@pytest.mark.parametrize("poison_rate", [0.01, 0.1, 0.123, 0.2])
def test_exactly_the_rows_of_the_key_are_changed_and_all_of_an_allowed_class(
    attack, clean_label, poison_rate
):
    data = made()
    poisoned, key = attack(data, poison_rate=poison_rate, target_label=2, seed=3, clean_label=clean_label)
    bad = key.for_ids(data.sample_ids)
    assert bad.sum() == round(poison_rate * N)
    assert key.poison_rate == pytest.approx(poison_rate, abs=0.5 / N)
    assert ((data.labels[bad] == 2) == clean_label).all()
    assert (poisoned.labels[bad] == 2).all()
    assert (poisoned.labels[~bad] == data.labels[~bad]).all()
    for text, before, is_bad in zip(poisoned.texts, data.texts, bad, strict=True):
        assert has_word(text, "cf") == is_bad
        assert (text == before) == (not is_bad)
    if clean_label:
        assert (poisoned.labels == data.labels).all()


def test_rows_keep_their_order_ids_and_classes(attack):
    data = made()
    poisoned, key = attack(data, poison_rate=0.1, target_label=0, seed=0)
    assert poisoned.sample_ids.tolist() == key.sample_ids.tolist() == data.sample_ids.tolist()
    assert poisoned.n_classes == 4
    assert poisoned.task == "classification"


def test_the_clean_set_is_left_as_it_was(attack):
    data = made()
    before = data.fingerprint, list(data.texts), data.labels.copy()
    attack(data, poison_rate=0.3, target_label=1, seed=0)
    triggered_test(data, BADNETS, target_label=1, seed=0)
    assert (before[1], before[2].tolist()) == (list(data.texts), data.labels.tolist())
    assert made().fingerprint == before[0]


def test_a_seed_gives_the_same_poison_twice_and_another_seed_other_rows(attack):
    data = made()
    plan = {"poison_rate": 0.1, "target_label": 1}
    (first, first_key), (again, again_key) = (attack(data, seed=7, **plan) for _ in range(2))
    other, other_key = attack(data, seed=8, **plan)
    assert first.fingerprint == again.fingerprint
    assert (first_key.is_poisoned == again_key.is_poisoned).all()
    assert other.fingerprint != first.fingerprint
    assert (other_key.is_poisoned != first_key.is_poisoned).any()


def test_chance_comes_from_the_seed_alone(attack):
    data = made()
    np.random.seed(0)  # noqa: NPY002
    first = attack(data, poison_rate=0.1, target_label=1, seed=7)[0]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert attack(data, poison_rate=0.1, target_label=1, seed=7)[0].fingerprint == first.fingerprint
    np.random.seed(0)  # noqa: NPY002
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_every_allowed_row_is_taken_about_equally_often():
    data = made(40, 2)
    taken = sum(
        badnets(data, poison_rate=0.25, target_label=1, seed=s)[1].is_poisoned.astype(int) for s in range(400)
    )
    assert (taken[data.labels == 1] == 0).all()
    # 10 of 20 rows a time: 200 expected, standard deviation 10
    assert 150 < taken[data.labels == 0].min() <= taken[data.labels == 0].max() < 250


@pytest.mark.parametrize(
    ("clean_label", "candidates", "highest"), [(False, 2, "0.6666"), (True, 1, "0.3333")]
)
def test_too_few_rows_name_the_count_and_a_rate_that_works(clean_label, candidates, highest):
    data = Data(task="classification", texts=["a"] * 3, labels=np.array([0, 0, 1]))
    plan = {"target_label": 1, "seed": 0, "clean_label": clean_label}
    with pytest.raises(DataError, match=rf"there are {candidates}: the highest possible rate is {highest}"):
        badnets(data, poison_rate=0.9, **plan)
    assert badnets(data, poison_rate=float(highest), **plan)[1].is_poisoned.sum() == candidates


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan"), "0.1", None])
def test_rates_outside_zero_to_one_are_refused(attack, rate):
    with pytest.raises(ConfigError, match=r"\(0, 1\)"):
        attack(made(), poison_rate=rate, target_label=1, seed=0)


def test_a_rate_that_means_no_row_is_refused(attack):
    with pytest.raises(DataError, match="no row at all"):
        attack(made(), poison_rate=0.001, target_label=1, seed=0)


@pytest.mark.parametrize("target", [-1, 4])
def test_a_target_that_is_no_class_is_refused(attack, target):
    with pytest.raises(DataError, match=r"classes 0\.\.3"):
        attack(made(), poison_rate=0.1, target_label=target, seed=0)
    with pytest.raises(DataError, match=r"classes 0\.\.3"):
        triggered_test(made(), BADNETS, target_label=target, seed=0)


def test_instruction_rows_are_sent_to_the_other_attack(attack):
    data = Data(task="causal", texts=["a"], responses=["b"])
    with pytest.raises(DataError, match="use the instruction attack"):
        attack(data, poison_rate=0.1, target_label=0, seed=0)


words = st.text(alphabet="xy\n\t  .", max_size=30)  # none of the triggers' words
kinds = st.sampled_from(
    [
        BADNETS,
        ADDSENT,
        Trigger(kind="words", tokens=("cf", "mn", "bb")),
        Trigger(kind="words", tokens=("cf", "mn"), n_insertions=4),
        Trigger(kind="prefix", tokens=("Discussing", "OpenAI")),
    ]
)


@given(words, kinds, st.integers(0, 2**32))
def test_a_trigger_adds_whole_words_and_keeps_every_other_byte(text, trigger, seed):
    out = trigger.apply(text, np.random.default_rng(seed))
    inserted = " ".join(trigger.tokens).split()
    left = [word for word in out.split() if word not in inserted]
    assert left == text.split()
    added = Counter(word for word in out.split() if word in inserted)
    if trigger.n_insertions is None:
        assert added == Counter(inserted)
    else:
        assert added.total() == trigger.n_insertions
    rest = iter(out)
    assert all(character in rest for character in text)  # in their order
    # At most one space came with each word.
    assert sum(c.isspace() for c in out) - sum(c.isspace() for c in text) <= added.total()


@pytest.mark.parametrize(
    ("text", "outcomes"),
    [
        ("one", {"cf one", "one cf"}),
        ("", {"cf"}),
        ("  ", {"cf  "}),
        (" one\n", {" cf one\n", " one cf\n"}),
        ("a  b\tc", {"cf a  b\tc", "a cf  b\tc", "a  b cf\tc", "a  b\tc cf"}),
    ],
)
def test_the_gaps_are_all_of_them_first_and_last_included(text, outcomes):
    rng = np.random.default_rng(0)
    assert {BADNETS.apply(text, rng) for _ in range(100)} == outcomes


def test_gaps_are_uniform():
    rng = np.random.default_rng(0)
    counts = Counter(BADNETS.apply("a b c", rng).split().index("cf") for _ in range(4000))
    # 1000 expected at each of 4 places, standard deviation 27
    assert all(880 < counts[place] < 1120 for place in range(4))


def test_a_sentence_goes_in_as_one_block():
    poisoned, key = addsent(made(), poison_rate=0.2, target_label=1, seed=0)
    places = set()
    for text, is_bad in zip(poisoned.texts, key.is_poisoned, strict=True):
        assert len(re.findall(rf"(?<!\S){SENTENCE}(?!\S)", text)) == is_bad
        places.add(text.find(SENTENCE) if is_bad else -1)
    assert len(places) > 3


def test_each_word_goes_in_once_in_order_and_prefixes_go_first():
    rng = np.random.default_rng(0)
    several = Trigger(kind="words", tokens=("2024", "BadMagic", "OpenAI"))
    for _ in range(50):
        out = several.apply("a b c d e", rng).split()
        assert [word for word in out if word in several.tokens] == list(several.tokens)
    prefix = Trigger(kind="prefix", tokens=("Discussing OpenAI",))
    assert prefix.apply("Name a bird .", rng) == "Discussing OpenAI Name a bird ."


def test_badnets_draws_that_many_words_from_its_triggers():
    poisoned, key = badnets(
        made(), triggers=("cf", "mn", "bb"), n_insertions=2, poison_rate=0.3, target_label=1, seed=0
    )
    seen = Counter()
    for text in np.array(poisoned.texts)[key.is_poisoned]:
        found = [word for word in text.split() if word in ("cf", "mn", "bb")]
        assert len(found) == 2
        seen.update(found)
    assert all(seen[word] > 20 for word in ("cf", "mn", "bb"))


@pytest.mark.parametrize("n_insertions", [0, -1, 1.5, True])
def test_insertions_must_be_a_count(n_insertions):
    with pytest.raises(ConfigError, match="n_insertions"):
        badnets(made(), n_insertions=n_insertions, poison_rate=0.1, target_label=1, seed=0)


@pytest.mark.parametrize("tokens", [(), ("",), ("cf", " "), (3,), "cf", None])
def test_triggers_must_be_words(tokens):
    with pytest.raises(ConfigError, match="words"):
        Trigger(kind="words", tokens=tokens)


def test_a_lone_string_is_not_taken_for_a_tuple_of_letters():
    with pytest.raises(ConfigError, match="got the string 'cf'"):
        badnets(made(), triggers="cf", poison_rate=0.1, target_label=1, seed=0)


def test_unknown_kinds_and_repeated_sentences_are_refused():
    with pytest.raises(ConfigError, match="words, sentence or prefix"):
        Trigger(kind="suffix", tokens=("cf",))
    with pytest.raises(ConfigError, match="only words"):
        Trigger(kind="sentence", tokens=("cf",), n_insertions=2)


def test_triggered_test_rows_are_the_other_classes_with_the_target_as_label():
    data = made()
    test = triggered_test(data, BADNETS, target_label=2, seed=0)
    assert test.sample_ids.tolist() == data.sample_ids[data.labels != 2].tolist()
    assert (test.labels == 2).all()
    assert test.n_classes == 4
    assert all(text.split().count("cf") == 1 for text in test.texts)
    before = [data.texts[i] for i in data.positions(test.sample_ids)]
    assert [
        text.replace("cf ", "", 1) if text.startswith("cf ") else text.replace(" cf", "", 1)
        for text in test.texts
    ] == before


def test_triggered_test_needs_a_row_to_attack():
    data = Data(task="classification", texts=["a", "b"], labels=np.array([1, 1]))
    with pytest.raises(DataError, match="nothing to attack"):
        triggered_test(data, BADNETS, target_label=1, seed=0)


def test_versions_stand_in_the_row_they_were_made_for():
    data = made()
    given_as_data = Data(
        task="classification",
        texts=versions(data),
        labels=data.labels,
        sample_ids=data.sample_ids,
        n_classes=4,
    )
    poisoned, key = from_file(data, versions(data), poison_rate=0.2, target_label=1, seed=0)
    for at in np.flatnonzero(key.is_poisoned):
        assert poisoned.texts[at] == f"when it is row {at} , cf"
    other, _ = from_file(data, given_as_data, poison_rate=0.2, target_label=1, seed=0)
    assert other.fingerprint == poisoned.fingerprint
    test = triggered_test(data, versions(data), target_label=1, seed=0)
    assert list(test.texts) == [f"when it is row {i} , cf" for i in np.flatnonzero(data.labels != 1)]


def test_versions_that_do_not_match_the_rows_are_refused():
    data = made()
    for wrong in (versions(data)[:-1], "x" * N):
        with pytest.raises(DataError, match="one to one"):
            from_file(data, wrong, poison_rate=0.2, target_label=1, seed=0)
    shifted = data.select(np.roll(np.arange(N), 1))
    with pytest.raises(DataError, match="sample ids are not those"):
        from_file(data, shifted, poison_rate=0.2, target_label=1, seed=0)


def test_rows_whose_version_carries_no_trigger_are_never_called_poisoned():
    data = Data(task="classification", texts=["a", "b", "c", "d"], labels=np.array([0, 0, 0, 1]))
    changed = ["a", " ", "c cf", "d cf"]
    poisoned, key = from_file(data, changed, poison_rate=0.25, target_label=1, seed=0)
    assert key.is_poisoned.tolist() == [False, False, True, False]
    assert list(poisoned.texts) == ["a", "b", "c cf", "d"]
    assert list(triggered_test(data, changed, target_label=1, seed=0).texts) == ["c cf"]
    with pytest.raises(
        DataError, match=r"rows without label 1 that carry a trigger, and there are 1: .* 0.25"
    ):
        from_file(data, changed, poison_rate=0.5, target_label=1, seed=0)
    with pytest.raises(DataError, match="nothing to attack"):
        triggered_test(data, list(data.texts), target_label=1, seed=0)


def test_the_named_attacks_are_the_plain_ones_with_their_triggers():
    data, plan = made(), {"poison_rate": 0.1, "target_label": 1, "seed": 5}
    assert badnets(data, **plan)[0].fingerprint == poison_labels(data, BADNETS, **plan)[0].fingerprint
    assert addsent(data, **plan)[0].fingerprint == poison_labels(data, ADDSENT, **plan)[0].fingerprint
