"""Any torch module of the user's or of VISSL, read by forward hooks."""
