"""The ``f3rm`` command: a table of subcommands, each loaded only when it is called.

A subcommand is a dataclass whose fields are its arguments and whose ``run`` does the work; one
entry in :data:`COMMANDS` adds it.
"""

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence

import f3rm
from f3rm.distribution import namesake_beside, silence_other_packages
from f3rm.scripts.command import run_command

COMMANDS: Mapping[str, tuple[str, str]] = {
    "extract": (
        "f3rm.scripts.extract:Extract",
        "Compute the features of a dataset's images and keep them beside it.",
    ),
    "attach": (
        "f3rm.scripts.attach:Attach",
        "Add features to a trained run of nerfacto or f3rm; its colours stay as they are.",
    ),
    "find": (
        "f3rm.scripts.find:Find",
        "Find things in a trained run: where they are, how large, how certain.",
    ),
    "view": (
        "f3rm.scripts.view:View",
        "Look at a splat or a trained run in a browser, and ask it in words or with a click.",
    ),
    "label": (
        "f3rm.scripts.label:Label",
        "Label all photographs and surfaces of a trained run from a few clicks or words.",
    ),
    "render": (
        "f3rm.scripts.render:Render",
        "Render views of a trained run, and its answers to queries, as pictures or videos.",
    ),
    "probe": (
        "f3rm.scripts.probe:ProbeCommand",
        "Fit a classifier to extracted features, and measure it.",
    ),
    "nsd": ("f3rm.scripts.systems.nsd:Nsd", "Extract features of NSD images for brain encoders."),
    "image2rep": (
        "f3rm.scripts.systems.image2rep:Image2Rep",
        "Write vectors of images and videos by a video autoencoder, for classifiers.",
    ),
    "bench": ("f3rm.scripts.bench:Bench", "Time the extraction of features on this machine."),
    "eval": ("f3rm.scripts.eval:Eval", "Measure a trained run on its held-out views."),
    "export": (
        "f3rm.scripts.export:Export",
        "Write points, features, meshes and boxes of a trained run to files.",
    ),
    "pack": (
        "f3rm.scripts.pack:Pack",
        "Pack a trained run into one file, which opens anywhere.",
    ),
    "cache": (
        "f3rm.scripts.cache:Cache",
        "Show, verify, repair or remove the features of a dataset.",
    ),
    "doctor": (
        "f3rm.scripts.doctor:Doctor",
        "Report what is installed, what would run, and what this machine lacks.",
    ),
    "models": ("f3rm.scripts.models:Models", "List the feature types and models."),
    "layers": ("f3rm.scripts.models:Layers", "List the taps of a model."),
    "shape": ("f3rm.scripts.models:Shape", "Print the shape of features for images of a size."),
    "make-scene": ("f3rm.scripts.make_scene:MakeScene", "Render a generated scene as a dataset."),
    "demo": (
        "f3rm.scripts.demo:Demo",
        "Make a scene or take photographs, train on it, ask it, and show what came of it.",
    ),
}
"""Name -> (dataclass as ``module:Class``, one line of help)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``f3rm <command> ...`` and returns the exit code.

    Args:
        arguments: The words after ``f3rm``; None takes them from ``sys.argv``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"f3rm {f3rm.__version__}")
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "f3rm --help lists the commands."
        print(f"f3rm: there is no command {words[0]!r}. {hint}", file=sys.stderr)
        return 2
    if arguments is None:  # the console's command, not a call in Python
        silence_other_packages()
    # Before the import, which may fail where another project overwrote files.
    mixed = namesake_beside()
    if mixed is not None:
        print(mixed, file=sys.stderr)
    module, _, name = COMMANDS[words[0]][0].partition(":")
    command = getattr(importlib.import_module(module), name)
    return run_command(command, words[1:], prog=f"f3rm {words[0]}")


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name.ljust(width)}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: f3rm COMMAND [ARGUMENTS]",
            "",
            "Feature fields: 3D scenes you can ask questions.",
            "",
            "commands:",
            *lines,
            "",
            "f3rm COMMAND --help explains a command.",
            "Training and viewing are Nerfstudio's: ns-train f3rm --help.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
