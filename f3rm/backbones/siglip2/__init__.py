"""SigLIP2 through transformers."""
