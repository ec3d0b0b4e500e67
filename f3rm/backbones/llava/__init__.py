"""The vision half of LLaVA-style models such as RoboPoint: tower and projector."""
