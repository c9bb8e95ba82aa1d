"""A plugin for axolotl: its training runs under a defense.

    plugins:
      - asepsis.integrations.axolotl.AsepsisPlugin
    asepsis:
      defense: abl
      drop_ratio: 0.1            # a field of the defense's config

Written against the plugin interface of axolotl 0.19, whose plugin manager loads it. What the tests have is a stand-in for
that interface; a training by axolotl itself was never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asepsis.defenses import load
from asepsis.errors import ConfigError

if TYPE_CHECKING:
    BasePlugin: Any = object
    BaseModel: Any = object
else:
    try:  # axolotl loads this file; without it there is nobody to plug into, and the file still imports
        from axolotl.integrations.base import BasePlugin
        from pydantic import BaseModel
    except ImportError:
        BasePlugin = BaseModel = object

#: Where the finished run is written, in axolotl's ``output_dir``.
FOLDER = "defended"

_REFUSED = {
    "sample_packing": "it joins rows, and a defense tells them apart",
    "batch_flattening": "it joins rows, and a defense tells them apart",
    "rl": "a defense needs the cross entropy of each row",
    "reward_model": "a defense needs the cross entropy of each row",
    "process_reward_model": "a defense needs the cross entropy of each row",
    "trainer_cls": "the defended trainer stands in its place",
}


class AsepsisArgs(BaseModel):  # type: ignore[misc]
    """What the plugin adds to axolotl's configuration: a defense's name and its settings, or ``clean_reference``."""

    asepsis: dict[str, Any] | None = None


class AsepsisPlugin(BasePlugin):  # type: ignore[misc]
    """Makes axolotl's trainer a defended one, see :func:`asepsis.defended`.

    ``asepsis:`` names the ``defense`` (``abl`` or ``btu``), fields of its config, and ``clean_reference``, a file of trusted
    rows, where it takes them. What was found goes to ``output_dir/defended``: the model once more, ``asepsis.json`` and the
    judged rows, for `asepsis report` and `asepsis verify`. There are no checkpoints: axolotl's know nothing of phases.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trainer: Any = None

    def get_input_args(self) -> str:
        """Return where axolotl finds the block's type."""
        return f"{__name__}.{AsepsisArgs.__name__}"

    def get_trainer_cls(self, cfg: Any) -> type[Any] | None:
        """Return a defended trainer; None where the configuration has no ``asepsis:`` block.

        Raises
        ------
        ConfigError
            The block names no defense or a field it does not have, or the configuration asks for what a defense could not act
            under.
        """
        from asepsis.training.defended import defended

        block = cfg.get("asepsis")
        if block is None:
            return None
        for name, reason in _REFUSED.items():
            if cfg.get(name):
                raise ConfigError(f"axolotl's {name} cannot be used with asepsis: {reason}; leave it out")
        fields = dict(block) if isinstance(block, Mapping) else {}
        choice, reference = fields.pop("defense", None), fields.pop("clean_reference", None)
        if not isinstance(choice, str):
            raise ConfigError(f"asepsis: defense: must be a name such as abl, got {choice!r}")
        if choice == "musclelora" or (choice == "btu" and cfg.get("adapter")):
            raise ConfigError(
                f"axolotl saves the model its own way, which cannot write what {choice} makes of it here; train with "
                "asepsis.defended in a script of your own"
            )
        from axolotl.core.trainers.base import AxolotlTrainer

        config = load(choice).config_type.from_dict(fields)
        made: type[Any] = defended(AxolotlTrainer, config, clean_reference=reference)
        return made

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Keep the trainer: what it found is asked for once it is done."""
        if cfg.get("asepsis") is not None:
            from transformers.trainer_utils import SaveStrategy

            self._trainer = trainer
            trainer.args.save_strategy = SaveStrategy.NO

    def post_train(self, cfg: Any, model: Any) -> None:
        """Write what the defense found, once: axolotl calls this after training and at its end."""
        del model
        trainer, self._trainer = self._trainer, None
        if trainer is not None and trainer.run is not None and trainer.is_world_process_zero():
            trainer.run.save_pretrained(Path(cfg["output_dir"]) / FOLDER)
