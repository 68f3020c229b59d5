"""Causal transformers on text."""
