"""What people type and is fuzzed: YAML specifications, configurations of VISSL, and questions."""

import math
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
import yaml

from f3rm.language.expressions import combined, parse, phrases_of, split_questions, wholes_of
from f3rm.scripts.taps import choose_spec
from f3rm.store.spec import FeatureSpec
from f3rm.viewer.saved_queries import QueryFile
from tests.fuzz.mutations import changed_json, mutated, odd_value, spoiled

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghi")
)


class Specs:
    """YAML specifications and configurations of VISSL."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "spec.yaml"
        self._spec = FeatureSpec.of(
            "dinov2:facebook/dinov2-base",
            ["final@cls", "-1:query@all", "res4|avg(8,3,0)|flatten"],
            prep={"resize": "exact", "size": [224, 196], "fit": "pad"},
            frames={"num": 8, "pick": "uniform", "pool": "mean"},
            background=[0.0, 0.5, 1.0],
        ).to_dict()
        self._vissl = {
            "config": {
                "MODEL": {
                    "FEATURE_EVAL_SETTINGS": {
                        "EVAL_MODE_ON": True,
                        "SHOULD_FLATTEN_FEATS": False,
                        "LINEAR_EVAL_FEAT_POOL_OPS_MAP": [
                            ["res4", ["AvgPool2d", [[8, 8], 3, 0]]],
                            ["res5", ["AdaptiveAvgPool2d", [[2, 2]]]],
                        ],
                    }
                },
                "EXTRACT_FEATURES": {"CHUNK_THRESHOLD": 5, "OUTPUT_DIR": "out"},
            }
        }

    def __call__(self, rng: random.Random) -> None:
        self._file.write_bytes(self._content(rng))
        if rng.random() < 0.5:
            self._check(choose_spec(self._file, "dinov2:facebook/dinov2-base", ()).spec, rng)
        else:
            self._check(FeatureSpec.load(self._file), rng)

    def _check(self, spec: FeatureSpec, rng: random.Random) -> None:
        saved = self._file.with_name("saved.yaml")
        spec.save(saved)
        assert FeatureSpec.load(saved) == spec
        assert FeatureSpec.from_dict(spec.to_dict()) == spec
        available = rng.choice((1, 7, 1000))
        assert all(0 <= index < available for index in spec.frames.choose(available))
        placement = spec.prep.place((48, 64), 14)
        assert all(side % 14 == 0 for side in placement.canvas)

    def _content(self, rng: random.Random) -> bytes:
        plain = self._spec if rng.random() < 0.7 else self._vissl
        kind = rng.randrange(20)
        if kind == 0:
            return (BOMB + yaml.safe_dump(plain) + rng.choice(("taps: *i", "prep: *h"))).encode()
        if kind == 1:
            return b"taps: &a [*a]\nbackbone: " + rng.choice((b"*a", b"x:y"))
        if kind == 2:
            return rng.choice(
                (b"!!python/object/apply:os.mkdir ['/evil']", b"[" * 999, b"- " * 999)
            )
        text = yaml.safe_dump(mutated(plain, rng) if kind < 15 else plain)
        if kind < 15:
            return text.encode(errors="surrogatepass")
        return spoiled(text.encode(), rng)


WORDS = (
    "red mug",
    "bowl",
    "and",
    "or",
    "not",
    "NOT",
    "(",
    ")",
    ">",
    ";",
    '"',
    "é",
    "\x1b[2J",
    "\0",
)


class Queries:
    """Questions that are typed, and questions that are read from a run's file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = QueryFile(folder)
        self._plain = {
            "version": 1,
            "queries": {
                "mine": {
                    "text": {"positives": "mug", "negatives": "thing", "temperature": 0.1},
                    "canonical": True,
                    "head": "clip",
                    "look": {"temperature": 0.1, "threshold": 0.5, "low": 0.0, "high": 1.0},
                    "examples": [
                        {"label": "click", "is_positive": True, "features": {"clip": [1.0, 2.0]}}
                    ],
                }
            },
        }

    def __call__(self, rng: random.Random) -> None:
        if rng.random() < 0.2:
            self._file.path.write_bytes(changed_json(self._plain, rng))
            for query in self._file.read().values():
                assert math.isfinite(query.settings.temperature)
            return
        text = "".join(self._pieces(rng))
        for question in split_questions(text):
            assert question.strip()
        expression = parse(text)
        phrases = phrases_of(expression)
        scores = {phrase: torch.rand(4) for phrase in phrases}
        found = combined(expression, scores.__getitem__, lambda _: 0.5)
        assert ((found >= 0) & (found <= 1)).all()
        assert len(wholes_of(expression)) >= 0
        if '"' not in text:
            assert parse(str(expression)) == expression

    def _pieces(self, rng: random.Random) -> Iterator[str]:
        kind = rng.randrange(12)
        if kind == 0:
            depth = rng.choice((5, 40, 2000, 20_000))
            sign = rng.choice(("(", "not ", "a > ", "a and ", '"'))
            yield sign * depth + "mug" + (")" * depth if sign == "(" else "")
            return
        if kind == 1:
            yield str(odd_value(rng))
            return
        for _ in range(rng.randrange(1, 12)):
            yield rng.choice(WORDS) + " " * rng.randrange(2)
