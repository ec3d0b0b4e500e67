"""Controls of the viewer and their state; the only room that knows viewer elements."""
