"""One small run on a generated scene for all tests of the viewer."""

from tests.run_fixtures import colours, run

__all__ = ["colours", "run"]
