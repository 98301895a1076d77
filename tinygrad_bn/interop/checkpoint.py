"""Checkpoints: all that a training run needs to go on as if it had never stopped, in one file that is whole or is not there."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import type_name
from ..datasets import Batches
from ..nn import Module
from ..ops.checks import need_int
from ..optim import Optimizer, Schedule
from ..random import get_rng_state, set_rng_state
from . import files
from .manifest import Contents, pack, unpack

_NAME = re.compile(r"step-(\d{8,})\.safetensors")


class Loaded(NamedTuple):
    """Which checkpoint was loaded: its step, what was saved with it as ``extra``, and its file."""

    step: int
    extra: Any
    path: Path


class Checkpoint:
    """The newest ``keep`` checkpoints of one run, in a folder::

        checkpoint = interop.Checkpoint("runs/first", keep=3)
        loaded = checkpoint.load_latest(model, optimizer, schedule, batches)  # None where there is none
        step = loaded.step if loaded else 0
        while batches.epoch < 10:
            for images, labels in batches:
                ...
                step += 1
                checkpoint.save(step, model, optimizer, schedule, batches)

    A run that was killed and resumed so ends with the same bits as one that was not. Saved are the model's parameters and
    buffers, the optimizer's options and state, the schedule, the position in the data, and the package's random numbers;
    gradients are not, so save after a step, and neither are NumPy's own random numbers, nor the modes of modules.

    A checkpoint is a safetensors file with the SHA-256 of each of its tensors. It gets its name only once it is on the disk, so
    a crash leaves the one before; room for one more than ``keep`` is needed. One process at a time writes to a folder.

    Raises TypeError or ValueError for a folder that is no path or a ``keep`` below 1.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3):
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"interop.Checkpoint expected a path, got {type_name(folder)}")
        self.folder, self.keep = Path(folder), need_int("interop.Checkpoint", "keep", keep, 1)
        self._step = -1  # of the run that this object saves: none yet
        self._looked = False  # whether that run knows what was in the folder before

    def save(
        self,
        step: int,
        model: Module,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        batches: Batches | None = None,
        extra: Any = None,
    ) -> Path:
        """Write the checkpoint of a step, delete those beyond ``keep``, and return its path. ``extra`` is what JSON can hold,
        and comes back as JSON has it: tuples as lists, keys as strings.

        Raises ValueError for a step below the last one, or if the folder has later ones of a run that this one did not load;
        TypeError for what is none of these objects, or no JSON; OSError if it cannot be written: those before stay whole.
        """
        _check(model, optimizer, schedule, batches)
        need_int("Checkpoint.save", "step", step, 0)
        if step < self._step:
            raise ValueError(f"Checkpoint.save expected a step of at least {self._step}, the last one, got {step}")
        newest = max(self._steps(), default=-1)
        if not self._looked and newest >= step:
            raise ValueError(
                f"Checkpoint.save: {self.folder} has checkpoints up to step {newest} of another run, and this is step {step}; "
                "load_latest() goes on with that run, an empty folder begins another"
            )
        content = pack(Contents(
            step, model.state_dict(), _state(optimizer), _state(schedule), _state(batches), get_rng_state(), extra
        ))  # fmt: skip
        path = self._path(step)
        try:
            self._make_folder()
            self._set_damaged_aside()
            for leftover in self.folder.glob(f".*{files.TEMPORARY}"):  # of a run that was killed while it wrote
                leftover.unlink()
            self._step, self._looked = int(step), True  # before an interrupt can come that finds the file in its place
            files.write_whole(str(path), content)
        except OSError as error:
            before = f"that of step {newest} is whole" if newest >= 0 else "there was none before"
            why = f"Checkpoint.save could not write the checkpoint of step {step} ({error.strerror}); {before}"
            raise OSError(error.errno, why, str(path)) from error
        for old in sorted(self._steps())[: -self.keep]:
            self._path(old).unlink()
        return path

    def load_latest(
        self,
        model: Module,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        batches: Batches | None = None,
    ) -> Loaded | None:
        """Put these objects, and the package's random numbers, where the newest checkpoint has them; None if there is none.

        A damaged checkpoint is skipped, with a RuntimeWarning that says what was wrong. What was saved and is not asked for is
        left alone. Raises ValueError, before anything is changed, where a whole checkpoint does not fit these objects; OSError
        if a file cannot be read.
        """
        _check(model, optimizer, schedule, batches)
        found = self._newest()
        loaded = None
        if found is not None:
            _, contents = found
            path = self._path(contents.step)
            _take_over(path, contents, model, optimizer, schedule, batches)
            loaded = Loaded(contents.step, contents.extra, path)
        self._step, self._looked = (loaded.step if loaded else -1), True
        return loaded

    def _newest(self) -> tuple[bytes, Contents] | None:
        """The newest checkpoint that is not damaged: its file as it is, and what it holds."""
        for step in sorted(self._steps(), reverse=True):
            path = self._path(step)
            content = path.read_bytes()
            try:
                contents = unpack(path, content)
                if contents.step != step:
                    raise ValueError(f"{path} holds step {contents.step}; expected {step}, by its name")
            except ValueError as damage:
                warnings.warn(f"Checkpoint.load_latest skips a damaged checkpoint: {damage}", RuntimeWarning, stacklevel=3)
                continue
            return content, contents
        return None

    # ----- the folder

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def _steps(self) -> list[int]:
        """The steps of all checkpoints in the folder; none if it is not there."""
        names = os.listdir(self.folder) if self.folder.exists() else []  # (raises NotADirectoryError for a file)
        steps = [int(found[1]) for found in map(_NAME.fullmatch, names) if found]
        return [step for step in steps if self._path(step).name in names]  # not those with more zeros than ours

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            files.sync_folder(str(self.folder.resolve().parent))

    def _set_damaged_aside(self) -> None:
        """Give those that ``load_latest`` skipped, which are later than what it loaded, another name: somebody may look."""
        for step in self._steps() if self._looked else []:
            if step > self._step:
                self._path(step).rename(self._path(step).with_suffix(".damaged"))


def _state(part: Any) -> dict | None:
    return None if part is None else part.state_dict()


def _check(model: Any, optimizer: Any, schedule: Any, batches: Any) -> None:
    kinds = {"model": Module, "optimizer": Optimizer, "schedule": Schedule, "batches": Batches}
    for (name, kind), part in zip(kinds.items(), (model, optimizer, schedule, batches), strict=True):
        if not isinstance(part, kind) and (name == "model" or part is not None):
            raise TypeError(f"interop.Checkpoint expected {name} to be a {kind.__name__}, got {type_name(part)}")


def _take_over(path: Path, contents: Contents, model: Module, optimizer: Any, schedule: Any, batches: Any) -> None:
    """Load every part, or none: what was loaded goes back to what it was, if a later part does not fit."""
    for name, part in (("optimizer", optimizer), ("schedule", schedule), ("batches", batches)):
        if part is not None and getattr(contents, name) is None:
            raise ValueError(f"Checkpoint.load_latest: {path} was saved without {name}")
    before = model.state_dict(), _state(optimizer), _state(schedule), get_rng_state()
    for key, mine in before[0].items():
        saved = contents.model.get(key, mine)
        if saved.dtype != mine.dtype.newbyteorder("<"):  # a cast would not be the same bits
            raise ValueError(f"Checkpoint.load_latest: {path} does not fit: {key} expected {mine.dtype}, got {saved.dtype}")
    try:
        model.load_state_dict(contents.model)
        if schedule is not None:
            schedule.load_state_dict(contents.schedule)
        if optimizer is not None:  # after the model, whose weights it packs, and the schedule, which sets learning rates
            optimizer.load_state_dict(contents.optimizer)
        set_rng_state(contents.random)
        if batches is not None:
            batches.load_state_dict(contents.batches)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        model.load_state_dict(before[0])
        if schedule is not None:
            schedule.load_state_dict(before[2])
        if optimizer is not None:
            optimizer.load_state_dict(before[1])
        set_rng_state(before[3])
        raise ValueError(f"Checkpoint.load_latest: {path} does not fit: {error}") from error
