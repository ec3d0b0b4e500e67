"""Registers and spills of Triton's hash grids, compiled without a GPU.

``python benchmarks/triton_table.py`` compiles the kernel for every generation of GPUs, for grids of
Nerfacto and of the feature field, and prints the table of
docs/decisions/0010-hash-grids-in-triton.md: registers of a thread, bytes that spill into its local
memory, bytes of shared memory. ``--json`` prints the same as JSON. The numbers are those of
cuobjdump, which comes with Triton.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from f3rm.networks import triton_grid, triton_kernels

GPUS = {75: "Turing", 80: "A100", 86: "RTX 30", 89: "RTX 40", 90: "H100"}
"""Compute capabilities, and what has them."""
GRIDS = {"Nerfacto": (16, 2), "features": (12, 8)}
"""Levels, and features per level."""
_USED = {
    "read": {"out": "*fp16"},
    "gradients": {"gradient": "*fp16", "of_table": "*fp32", "of_points": "*fp32"},
}
"""The tensors that each use of the kernel has beside those of both, in mixed precision."""
_TENSORS = {"points": "*fp32", "table": "*fp32", "bounds": "*fp32", "layout": "*i32"}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def resources(capability: int, grid: str, use: str) -> dict[str, int]:
    """Compiles the kernel for one GPU, grid and use; returns what a program takes."""
    levels, features = GRIDS[grid]
    sizes = {"levels": levels, "features": features, "width": features}
    types = {**_TENSORS, **_USED[use], "num_points": "i32"}
    kernel: Any = triton_kernels.grid
    names = kernel.arg_names
    constants = {name: None for name in names if name not in types}
    constants |= {**sizes, "block": triton_grid.BLOCK}
    aligned = [["tt.divisibility", 16]]  # torch's tensors are
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): aligned for name, kind in types.items() if kind.startswith("*")},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        words = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", said)}
    return {
        "registers": found["REG"],
        "spilled": found["STACK"] + found["LOCAL"],
        "shared": found["SHARED"],
    }


def main() -> None:
    """Parses the command line, compiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    as_json = parser.parse_args().json
    columns = [(grid, use) for grid in GRIDS for use in _USED]
    found = {
        gpu: {f"{grid}, {use}": resources(gpu, grid, use) for grid, use in columns} for gpu in GPUS
    }
    if as_json:
        print(json.dumps(found))
        return
    print("| |", " | ".join(f"{grid}, {use}" for grid, use in columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    for gpu, kernels in found.items():
        cells = (f"{k['registers']} / {k['spilled']} / {k['shared']}" for k in kernels.values())
        print(f"| sm_{gpu} ({GPUS[gpu]}) |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
