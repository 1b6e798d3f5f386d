"""Measures whether fine-tuning made a language model forget what it knew."""

__version__ = "0.1.0"
