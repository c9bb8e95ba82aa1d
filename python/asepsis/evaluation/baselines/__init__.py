"""Cheap ways to do what the defenses do, from other papers: what does not beat them is not worth its cost."""

from __future__ import annotations

from asepsis.evaluation.baselines._found import Found
from asepsis.evaluation.baselines.cube import CubeConfig, by_clusters
from asepsis.evaluation.baselines.dedup import DedupConfig, by_repeats
from asepsis.evaluation.baselines.graceful import GracefulConfig, by_gradients
from asepsis.evaluation.baselines.zscore import WordScore, ZscoreConfig, by_words, word_scores

__all__ = [
    "CubeConfig",
    "DedupConfig",
    "Found",
    "GracefulConfig",
    "WordScore",
    "ZscoreConfig",
    "by_clusters",
    "by_gradients",
    "by_repeats",
    "by_words",
    "word_scores",
]
