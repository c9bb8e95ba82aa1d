"""A pipeline with a guard in front: what happens to a flagged input is the user's policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from asepsis.errors import ConfigError, DataError

if TYPE_CHECKING:
    from asepsis.inference.guard import Guard

Policy = Literal["flag", "abstain", "route"]
_POLICIES = ("flag", "abstain", "route")


@dataclass(frozen=True)
class Answer:
    """What came of one input.

    Attributes
    ----------
    output : Any
        The pipeline's, or the other pipeline's; None where nobody was asked.
    flagged : bool
    suspicion : float
    by : {"model", "other", "nobody"}
        Who answered.
    cut : bool
        The guard read the input in part only.
    """

    output: Any
    flagged: bool
    suspicion: float
    by: Literal["model", "other", "nobody"]
    cut: bool = False


class GuardedPipeline:
    """Judges inputs, then has them answered by policy. Made by :meth:`asepsis.Guard.wrap`."""

    def __init__(
        self, guard: Guard, pipeline: Callable[..., Any], *, policy: Policy = "flag", to: Any = None
    ) -> None:
        if policy not in _POLICIES:
            raise ConfigError(f"policy must be one of {', '.join(_POLICIES)}, got {policy!r}")
        if (policy == "route") != (to is not None):
            raise ConfigError(
                "policy='route' and to=..., the pipeline that answers flagged inputs, go together"
            )
        self.guard, self.pipeline, self.policy, self.to = guard, pipeline, policy, to

    @overload
    def __call__(self, inputs: str, **options: Any) -> Answer: ...
    @overload
    def __call__(self, inputs: Sequence[str], **options: Any) -> list[Answer]: ...
    def __call__(self, inputs: str | Sequence[str], **options: Any) -> Answer | list[Answer]:
        """Answer one input or several; ``options`` go to the pipelines."""
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        found = self.guard(texts)
        flagged = [f.flagged for f in found]
        asked = [True] * len(texts) if self.policy == "flag" else [not f for f in flagged]
        outputs = _asked(self.pipeline, texts, asked, options)
        others: list[Any] = [None] * len(texts)
        if self.policy == "route":
            others = _asked(self.to, texts, flagged, options)
        answers = []
        for at, finding in enumerate(found):
            by: Literal["model", "other", "nobody"] = "model"
            if not asked[at]:
                by = "other" if self.policy == "route" else "nobody"
            output = outputs[at] if asked[at] else others[at]
            answers.append(Answer(output, finding.flagged, finding.suspicion, by, finding.cut))
        return answers[0] if isinstance(inputs, str) else answers


def _asked(
    pipeline: Callable[..., Any], texts: list[str], wanted: list[bool], options: dict[str, Any]
) -> list[Any]:
    """Return one output a text, None for those not wanted; the pipeline sees the wanted ones as one list."""
    chosen = [text for text, yes in zip(texts, wanted, strict=True) if yes]
    if not chosen:
        return [None] * len(texts)
    outputs = list(pipeline(chosen, **options))
    if len(outputs) != len(chosen):
        raise DataError(f"the pipeline gave {len(outputs)} outputs for {len(chosen)} inputs")
    rest = iter(outputs)
    return [next(rest) if yes else None for yes in wanted]
