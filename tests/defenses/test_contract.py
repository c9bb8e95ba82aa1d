from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest

from asepsis.core.phases import Acted, Outcome, Score
from asepsis.defenses import available, load
from asepsis.defenses.base import Defense, DefenseConfig, Threat
from asepsis.errors import ConfigError, DefenseInert
from asepsis.testing import check_defense

SMALL = {
    "abl": {"snapshots": (3, 6), "grow_steps": 3},
    "btu": {"k": 2, "score": "l2"},
    "musclelora": {"scales": (1, 2, 3)},
}
TRAIN = [name for name in available() if load(name).threat is Threat.DATA]


@pytest.mark.parametrize("name", TRAIN)
def test_a_defense_keeps_the_contract(name):
    kind = load(name)
    outcome = check_defense(kind, config=kind.config_type(**SMALL.get(name, {})))
    assert outcome.acted.samples == 48


def test_the_folder_is_the_registry():
    assert {"abl", "btu", "musclelora"} <= set(available())
    assert not [name for name in available() if name.startswith("_") or name == "base"]
    with pytest.raises(ConfigError, match=r"no defense called 'base'.*abl"):
        load("base")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(DefenseConfig):
    rate: float = 0.5
    steps: tuple[int, ...] = (1, 2)
    name: str = "x"


def test_config_values_of_the_wrong_type_are_refused():
    for bad in ({"rate": "high"}, {"rate": True}, {"steps": [1]}, {"steps": (1.5,)}, {"name": 3}):
        with pytest.raises(ConfigError, match=rf"OwnConfig\.{next(iter(bad))}"):
            OwnConfig(**bad)


def test_command_line_words_become_values():
    read = OwnConfig.from_dict(
        OwnConfig.parse_strings({"rate": "1", "steps": "[3, 4]", "name": "plain word"})
    )
    assert read == OwnConfig(rate=1, steps=(3, 4), name="plain word")


def test_the_battery_catches_a_defense_without_a_paper():
    class Bare(Defense[OwnConfig]):
        config_type = OwnConfig

        def script(self, model, data):
            yield Score()
            return Outcome(acted=Acted(samples=1))

    with pytest.raises(AssertionError, match="Bare names no paper"):
        check_defense(Bare)

    class Undocumented(Bare):
        paper = load("abl").paper
        threat = Threat.DATA
        needs: ClassVar = frozenset()

    with pytest.raises(AssertionError, match="no part 'deviations'"):
        check_defense(Undocumented)


@dataclasses.dataclass(kw_only=True)
class Thawed:
    rate: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetful(OwnConfig):
    def to_dict(self):
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy(OwnConfig):
    @classmethod
    def from_dict(cls, values):
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "no_such_field"}
        )


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (Thawed(), "not frozen"),
        (Forgetful(rate=0.9), "does not survive"),
        (Greedy(), "takes unknown fields"),
    ],
)
def test_the_battery_catches_a_bad_config(config, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_defense(load("abl"), config=config)


def test_the_battery_catches_a_defense_that_does_nothing(monkeypatch):
    def idle(self, model, data):
        yield Score()
        return Outcome(acted=Acted())

    abl = load("abl")
    monkeypatch.setattr(abl, "script", idle)
    with pytest.raises(DefenseInert, match="nothing was defended"):
        check_defense(abl)
