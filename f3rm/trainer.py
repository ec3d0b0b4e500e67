"""Nerfstudio's trainer, with checks before anything is written, and a checkpoint after Ctrl-C."""

import atexit
import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from nerfstudio.engine.trainer import Trainer, TrainerConfig

from f3rm.compat import config_being_opened, is_nerfstudio_command
from f3rm.distribution import silence_other_packages
from f3rm.errors import DeviceError, F3rmError
from f3rm.extract.cache import feature_folder, find_cache
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.store.images import check_complete
from f3rm.store.items import check_present
from f3rm.training.left_out import kept_items, list_items

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""
_RESUMED = ("--load-dir", "--load-step", "--load-checkpoint", "--max-num-iterations")


@dataclass
class FeatureTrainerConfig(TrainerConfig):
    """Nerfstudio's configuration of a training run."""

    _target: type = field(default_factory=lambda: FeatureTrainer)

    def print_to_terminal(self) -> None:
        """Checks what the run needs, then prints the configuration.

        ns-train calls it first of all: a run that cannot start leaves no folder.

        Raises:
            F3rmError: If feature type, dataset, photographs, checkpoint or device cannot be used.
        """
        silence_other_packages()
        manager = self.pipeline.datamanager
        if isinstance(manager, FeatureDataManagerConfig):
            _check_data(manager)
        _check_device(self)
        if self.load_dir is not None and not any(self.load_dir.glob("step-*.ckpt")):
            raise F3rmError(
                f"--load-dir must be a folder with a checkpoint (step-*.ckpt), got "
                f"{str(self.load_dir)!r}. Give the nerfstudio_models of a run."
            )
        super().print_to_terminal()

    def get_checkpoint_dir(self) -> Path:
        """Returns the folder of checkpoints: of a run that is opened, the one beside its config.

        Nerfstudio's commands call it first of all when they open a run: other packages' warnings
        end here, as in :meth:`print_to_terminal`.
        """
        opened = config_being_opened()
        if opened is not None and is_nerfstudio_command():
            silence_other_packages()
        beside = opened.resolve().parent / self.relative_model_dir if opened else None
        return beside if beside and beside.is_dir() else super().get_checkpoint_dir()


class FeatureTrainer(Trainer):
    """Nerfstudio's trainer; Ctrl-C saves a checkpoint and says how to go on."""

    trained_step: int | None = None
    """The last step that was taken."""

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Sets up data, model and viewer."""
        try:
            super().setup(test_mode)
        except KeyboardInterrupt:
            _end("Stopped before the first step. Extracted features are kept for the next run.")

    def train_iteration(self, step: int) -> Any:
        """Takes one step; Ctrl-C waits for its end, so that no half of it is saved."""
        with _undisturbed():
            outputs = super().train_iteration(step)
            self.trained_step = step
        return outputs

    def train(self) -> None:
        """Trains; after Ctrl-C saves a checkpoint and ends the program."""
        try:
            super().train()
        except KeyboardInterrupt:
            if self.training_state == "completed":  # what the viewer waited for
                return
            if self.trained_step is None:
                _end("Stopped before the first step. Extracted features are kept.")
            self.save_checkpoint(self.trained_step)
            done = self.trained_step + 1
            last = self._start_step + self.config.max_num_iterations
            command = resume_command(sys.argv, self.checkpoint_dir, last - done)
            _end(f"Stopped after step {done} of {last}, which is saved. To go on:\n  {command}")


def _end(message: str) -> NoReturn:
    # At the very end: Nerfstudio still prints its profile.
    atexit.register(sys.stderr.write, f"\n{message}\n")
    raise SystemExit(_INTERRUPTED)


@contextlib.contextmanager
def _undisturbed() -> Generator[None]:
    """Delays Ctrl-C to the end of the block; a second one interrupts it."""
    usual = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()  # others can set no handler
    if not is_main or usual is signal.SIG_IGN:
        yield
        return
    pressed: list[int] = []

    def note(number: int, _: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed:
        raise KeyboardInterrupt


def resume_command(words: Sequence[str], checkpoints: Path, steps: int) -> str:
    """Returns the command with which an interrupted ns-train goes on.

    Args:
        words: The words of the interrupted one, e.g. ``ns-train f3rm --data DATA``.
        checkpoints: The folder of its checkpoint.
        steps: How many steps are left.
    """
    program, method, *others = [*words, "f3rm"][: max(2, len(words))]
    kept: list[str] = []
    is_value = False
    for word in others:
        name, equals, _ = word.replace("_", "-").partition("=")
        if name in _RESUMED:
            is_value = not equals
        elif is_value:
            is_value = False
        else:
            kept.append(word)
    added = ["--load-dir", str(checkpoints), "--max-num-iterations", str(steps)]
    return shlex.join([Path(program).name, method, *added, *kept])


def _check_data(manager: FeatureDataManagerConfig) -> None:
    """Checks feature type, dataset and photographs; those of a valid cache were decoded for it."""
    specs, data = manager.specs(), manager.dataset()
    items = list_items(data, manager.dataparser)
    folder = manager.feature_cache_dir
    is_cached = manager.enable_cache and all(
        find_cache(items, spec, feature_folder(data, spec, folder, items=items), failed_too=True)[0]
        for spec in specs
    )
    if manager.feature_on_error == "raise" and not is_cached:
        kept = kept_items(items, manager.feature_left_out)
        check_present(kept, data)
        check_complete(kept)


def _check_device(config: TrainerConfig) -> None:
    machine = config.machine
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if machine.device_type == "cuda" and not found:
        raise DeviceError(
            f"ns-train {config.method_name} trains on a GPU, and PyTorch {torch.__version__} finds "
            "none here. Use f3rm-lite --machine.device-type cpu, or install a GPU driver and a "
            "CUDA build of PyTorch."
        )
    if machine.device_type == "cuda" and machine.num_devices > found:
        raise DeviceError(
            f"--machine.num-devices must be at most the {found} GPU(s) of this machine, got "
            f"{machine.num_devices}."
        )
