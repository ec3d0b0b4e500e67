"""Runs a module as a command with tiny-cuda-nn's stand-in on a CPU.

``python -m tests.tcnn_command nerfstudio.scripts.train f3rm ...`` with the stand-in's folder on
``PYTHONPATH``.
"""

import runpy
import sys

from f3rm.networks import base

if __name__ == "__main__":
    base.tcnn_runs_on = lambda device: True
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
