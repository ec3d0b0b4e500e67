"""RADIO through transformers."""
