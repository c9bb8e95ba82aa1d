"""Cheap ways to do what the defenses do, from other papers: what does not beat them is not worth its cost."""

from __future__ import annotations

from asepsis.evaluation.baselines.zscore import WordScore, by_words, word_scores

__all__ = ["WordScore", "by_words", "word_scores"]
