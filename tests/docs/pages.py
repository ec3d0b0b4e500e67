"""The commands and Python examples of the pages, and what a test does with each command.

A command runs as it is written unless :data:`RULES` says otherwise, and why.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PROGRAMS = ("f3rm", "hf", "ns-eval", "ns-export", "ns-render", "ns-train", "ns-viewer", "python")
"""What runs as written; another program must have a rule."""

How = Literal["run", "serve", "parse", "make", "inner", "scene"]

_FENCE = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")

_TRAINING = (
    "--machine.device-type cpu --vis tensorboard --max-num-iterations 2 "
    "--pipeline.model.num-nerf-samples-per-ray 8 --pipeline.model.num-proposal-samples-per-ray 8 8 "
    "--pipeline.model.log2-hashmap-size 8 --pipeline.datamanager.train-num-rays-per-batch 64"
)


@dataclass(frozen=True)
class Rule:
    """What a test does with the commands that begin with some words.

    Attributes:
        start: The words.
        why: Why they do not simply run as written.
        how: ``run``; ``serve``: run until it serves a page, then press Ctrl-C; ``parse``: let the
            program read its words and stop; ``make``: let make say what it would do; ``inner``: run
            the f3rm command in it, once; ``scene``: read, then a generated scene is its output.
        adds: Words that the test appends.
        codes: Exit codes that are right.
    """

    start: str
    why: str
    how: How = "run"
    adds: str = ""
    codes: tuple[int, ...] = (0,)


RULES = (
    Rule("f3rm make-scene", "a small scene", adds="--views 11 --height 48 --width 64"),
    Rule("f3rm attach", "trains as long as ns-train", adds="--steps 2"),
    Rule("f3rm attach outputs/tabletop/splatfacto/run", "the run needs a GPU", "parse"),
    Rule("f3rm bench", "sizes for a GPU", adds="--sizes 28x28 --batches 1 2 --iterations 1"),
    Rule("f3rm image2rep", "large images", adds="--resolution 32,48"),
    Rule("f3rm render", "large pictures", adds="--downscale 8"),
    Rule("f3rm label", "large pictures", adds="--downscale 8 --rays 4000"),
    Rule("f3rm export", "a dense cloud or mesh", adds="--rays 4000"),
    Rule("f3rm export outputs/tabletop/f3rm/run mesh", "the same", adds="--height 48 --views 4"),
    Rule("f3rm doctor", "1 where ns-train f3rm cannot run", codes=(0, 1)),
    Rule("ns-train", "hours on a GPU; the viewer would wait for Ctrl-C", adds=_TRAINING),
    Rule("ns-train splatfacto", "needs a GPU", "parse"),
    Rule("ns-process-data", "needs COLMAP and a video", "scene"),
    Rule("ns-export pointcloud", "a million points", adds="--num-points 500"),
    Rule("ns-render interpolate", "large pictures", adds="--downscale-factor 8"),
    Rule("ns-viewer", "serves until Ctrl-C", "serve", "--viewer.websocket-host 127.0.0.1"),
    Rule("f3rm view", "serves until Ctrl-C", "serve"),
    Rule("python", "measures for minutes, or trains", "parse"),
    Rule("make", "sets up an environment from the package index", "make"),
    Rule("pip", "the package index", "parse"),
    Rule("torchrun", "several processes", "inner"),
    Rule("srun", "a cluster with Slurm", "inner"),
)


def rule_for(words: list[str]) -> Rule:
    """Returns the rule with the longest matching start, or the one of what runs as written."""
    line = " ".join(words)
    found = [rule for rule in RULES if line == rule.start or line.startswith(rule.start + " ")]
    if found:
        return max(found, key=lambda rule: len(rule.start))
    assert words[0] in PROGRAMS, f"{line!r} is unknown: give it a rule in tests/docs/pages.py"
    return Rule(words[0], "")


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced blocks of a language."""
    return [text for kind, text in _FENCE.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """Returns the commands of a page's bash blocks as words, in order."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


def inline_commands(page: Path) -> list[list[str]]:
    """Returns the whole calls in the text: of Python programs, and of pip."""
    spans = _INLINE.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    return [shlex.split(span) for span in spans if span.startswith(("python ", "pip install"))]
