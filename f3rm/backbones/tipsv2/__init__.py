"""TIPSv2 through transformers."""
