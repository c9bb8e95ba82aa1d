"""Attacks for evaluation: each poisons a data set by a seed and hands back the key, or makes the triggered test rows.

An attack is a :class:`Trigger` (how a text is changed) or triggered versions from a file, and a plan (which rows, and
what becomes of their answers). Functions take the plan as arguments; an :class:`Attack` holds it as a value.
"""

from __future__ import annotations

from asepsis.evaluation.attacks.labels import addsent, badnets, from_file, poison_labels, triggered_test
from asepsis.evaluation.attacks.recipes import (
    REFUSAL,
    AddSent,
    BadNets,
    FromFile,
    Instruction,
    Style,
    Syntactic,
)
from asepsis.evaluation.attacks.responses import (
    Answer,
    instruction_pattern,
    instruction_trigger,
    poison_responses,
    triggered_prompts,
)
from asepsis.evaluation.attacks.rows import apply_to_rows, poison_rows, trigger_rows
from asepsis.evaluation.attacks.spec import ATTACKS, Attack
from asepsis.evaluation.attacks.triggers import ADDSENT, BADNETS, Trigger

__all__ = [
    "ADDSENT",
    "ATTACKS",
    "BADNETS",
    "REFUSAL",
    "AddSent",
    "Answer",
    "Attack",
    "BadNets",
    "FromFile",
    "Instruction",
    "Style",
    "Syntactic",
    "Trigger",
    "addsent",
    "apply_to_rows",
    "badnets",
    "from_file",
    "instruction_pattern",
    "instruction_trigger",
    "poison_labels",
    "poison_responses",
    "poison_rows",
    "trigger_rows",
    "triggered_prompts",
    "triggered_test",
]
