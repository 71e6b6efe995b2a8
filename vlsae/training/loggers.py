"""Where a run tells how it goes: always a JSON line a row, and on request an experiment tracker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """Takes rows of numbers with their step; `close` at the end."""

    def log(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Rows appended to a file; after a resume, only those up to the step it resumes from stay.

    Example:
        >>> import tempfile
        >>> log = JsonLines(Path(tempfile.mkdtemp()) / "train.jsonl", step=0)
        >>> log.log({"step": 1, "ev": 0.5})
        >>> log.path.read_text()
        '{"step": 1, "ev": 0.5}\\n'
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except json.JSONDecodeError:  # a line that a kill cut short
                continue
        path.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")

    def log(self, row: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


class TensorBoard:
    """Rows as scalars of a TensorBoard run in a folder."""

    def __init__(self, folder: Path, recipe: dict[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("logger='tensorboard' needs that package: pip install 'vlsae[tensorboard]'.") from error
        self.writer = SummaryWriter(str(folder))
        self.writer.add_text("recipe", json.dumps(recipe, indent=2))

    def log(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(f"train/{name}", value, row["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Rows as metrics of a Weights & Biases run, in the project `vlsae` unless the environment names another."""

    def __init__(self, folder: Path, recipe: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise ValueError("logger='wandb' needs that package: pip install 'vlsae[wandb]'.") from error
        import os

        project = os.environ.get("WANDB_PROJECT", "vlsae")
        self.run = wandb.init(project=project, dir=str(folder), config=recipe, resume="allow")

    def log(self, row: dict[str, Any]) -> None:
        self.run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def close(self) -> None:
        self.run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB}


def open_loggers(logger: str, out: Path | None, step: int, recipe: dict[str, Any]) -> list[Logger]:
    """The JSON lines of a run folder, and a tracker by name.

    Raises:
        ValueError: for an unknown tracker, one that is not installed, or one without a folder to write to.
    """
    if logger and logger not in TRACKERS:
        raise ValueError(f"logger={logger!r} is unknown; use one of {', '.join(TRACKERS)}, or none.")
    if out is None:
        if logger:
            raise ValueError(f"logger={logger!r} needs a folder to write to; give out=...")
        return []
    return [JsonLines(out / "train.jsonl", step), *([TRACKERS[logger](out / logger, recipe)] if logger else [])]
