"""Regular expressions that somebody else wrote: how long could a backtracking engine look for what they describe?

Of an expression whose repeats stand on single characters, or on groups of which nothing varies, the time is bounded by a
power of the text's length: there is one way to go round each loop. Only a repeat of something that varies, ``(a|a)*`` or
``(a+)+``, takes time that doubles with every letter. So those are refused, and of the others the loops that follow each other
are counted: they are the power.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 10_000
# a bounded repeat of more than this is a loop
_FEW = 4
_QUANTIFIER = re.compile(r"[*+?]|\{(\d+)\}|\{(\d*),(\d*)\}")
_GROUP = re.compile(r"\((\?(:|=|!|<=|<!|>|P?<\w+>|[a-wyz-]*:))?(?![?*])")
# no references back, nothing whose end the two engines see at different places
_ESCAPE = re.compile(r"\\(?:x\{[0-9a-fA-F]+\}|[^1-9gkKQcCM])", re.DOTALL)
_FLAGS = re.compile(r"\(\?[a-wyz-]*\)")
_LAST = re.compile(r"\+(?=\||\Z)")
_CLASS_NAME = re.compile(r"\[:\^?\w+:\]")


@dataclass(frozen=True)
class Cost:
    """Of the costliest way through an expression.

    Attributes
    ----------
    loops : int
        Repeats without an end that follow each other: the time grows with that power of the text's length, and with one
        more where the expression is searched for at every place.
    choices : int
        Other things that may be there or not, or a few times: the time is multiplied with each.
    varies : bool
        Whether it can match in more than one way.
    """

    loops: int = 0
    choices: int = 0
    varies: bool = False


def cost(pattern: str, *, nested: bool = False) -> Cost:
    """Return what an expression may cost.

    Parameters
    ----------
    nested
        Brackets stand inside brackets, ``[a-z&&[^x]]``, as Oniguruma reads them and Python does not.

    Raises
    ------
    ValueError
        It repeats what varies, refers to itself, or is not understood; the message says which.
    """
    if len(pattern) > LONGEST:
        raise ValueError(f"it has {len(pattern):,} letters, {LONGEST:,} at most are taken")
    start = flags.end() if (flags := _FLAGS.match(pattern)) else 0
    reader = _Reader(pattern, start, nested=nested)
    try:
        found = reader.alternatives()
    except RecursionError:
        raise ValueError("its groups are nested too deeply") from None
    if reader.at < len(pattern):
        raise ValueError(f"a bracket closes at {reader.at} that was never opened")
    return found


class _Reader:
    def __init__(self, pattern: str, at: int, *, nested: bool) -> None:
        self.pattern, self.at, self.nested = pattern, at, nested
        self.depth = 0

    def alternatives(self) -> Cost:
        ways = [self.sequence()]
        while self.pattern.startswith("|", self.at):
            self.at += 1
            ways.append(self.sequence())
        most = max(way.loops for way in ways), max(way.choices for way in ways)
        return Cost(*most, varies=len(ways) > 1 or ways[0].varies)

    def sequence(self) -> Cost:
        loops = choices = 0
        varies = False
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            part = self.repeated(self.atom())
            loops, choices, varies = loops + part.loops, choices + part.choices, varies or part.varies
        return Cost(loops, choices, varies)

    def atom(self) -> Cost:
        c = self.pattern[self.at]
        if c == "(":
            return self.group()
        if c == "[":
            self.brackets()
        elif c == "\\":
            if not (found := _ESCAPE.match(self.pattern, self.at)):
                raise ValueError(
                    f"at {self.at} stands an escape that is not known, or one for what was matched before"
                )
            self.at = found.end()
        elif c in "*+?":
            raise ValueError(f"at {self.at} it repeats a repeat")
        else:
            self.at += 1
        return Cost()

    def group(self) -> Cost:
        if not (found := _GROUP.match(self.pattern, self.at)):
            raise ValueError(f"at {self.at} stands a kind of group that is not known")
        self.at = found.end()
        self.depth += 1
        inner = self.alternatives()
        self.depth -= 1
        if not self.pattern.startswith(")", self.at):
            raise ValueError("a bracket is never closed")
        self.at += 1
        return inner

    def brackets(self) -> None:
        self.at += 1
        self.at += self.pattern.startswith("^", self.at)
        first = self.at
        while self.at < len(self.pattern):
            c = self.pattern[self.at]
            if c == "]" and self.at > first:
                self.at += 1
                return
            if c == "\\":
                self.at += 2
            elif c == "[" and self.nested:
                if name := _CLASS_NAME.match(self.pattern, self.at):
                    self.at = name.end()
                else:
                    self.brackets()
            else:
                self.at += 1
        raise ValueError("a square bracket is never closed")

    def repeated(self, part: Cost) -> Cost:
        if not (found := _QUANTIFIER.match(self.pattern, self.at)):
            return part
        self.at = found.end()
        sign, exactly, most = found[0], found[1], found[3]
        if sign in "*+?" and self.pattern[self.at : self.at + 1] in ("?", "+"):
            self.at += 1  # lazy or possessive
        elif sign not in "*+?" and self.pattern.startswith("?", self.at):
            self.at += 1
        if sign[0] == "{" and not part.varies and self.depth == 0 and _LAST.match(self.pattern, self.at):
            self.at += 1  # Oniguruma repeats the repeat, and nothing comes after that could make it try again
            return Cost(1, 0, varies=True)
        if _QUANTIFIER.match(self.pattern, self.at):
            raise ValueError(f"at {self.at} it repeats a repeat")
        if sign == "?" or (not exactly and most in ("0", "1")):
            return Cost(part.loops, part.choices + 1, varies=True)
        if part.varies:
            raise ValueError(f"before {self.at} it repeats what can match in more than one way")
        if exactly:
            return part
        loop = sign in "*+" or not most or len(most) > 2 or int(most) > _FEW
        return Cost(int(loop), int(not loop), varies=True)
