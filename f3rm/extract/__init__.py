"""Images to features on disk: for a field (one tap), and for anything else (several taps)."""
