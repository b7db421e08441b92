"""Options that several commands share: one name, one meaning, one line of help."""

from pathlib import Path
from typing import Annotated

import typer

from stores.errors import UsageError

QUARANTINED = 3
SIGNALLED = 128


def require_folder(path: Path | None) -> Path | None:
    """Refuse a URL where a folder of this machine is meant; as a path it would name a new folder ``s3:``."""
    if path is not None and len(path.parts) > 1 and path.parts[0].endswith(":") and not path.exists():
        raise UsageError(f"{path.parts[0]}//{'/'.join(path.parts[1:])}: expected a folder on this machine, got a URL")
    return path


Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Workers = Annotated[int, typer.Option(min=0, help="Dask worker processes on this machine; 0 runs serially.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler, tcp://HOST:PORT.")]
Store = Annotated[
    str | None,
    typer.Option(help="Store folder or URL; default: a named checkpoint's, else the only one under data/stores/."),
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace whatever store is at the URL now.")]
StoreArgument = Annotated[str, typer.Argument(help="Store folder (or, to read, any fsspec URL).")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Policy: a run or checkpoint folder; default: the latest of the only policy.")
]
Control = Annotated[str, typer.Option(help="checkpoint, or a control: replay-demos, expert, zero.")]
InItsPlace = Annotated[
    str | None,
    typer.Option("--control", help="In the checkpoint's place: untrained, mean-action or no-instruction."),
]
Source = Annotated[Path | None, typer.Option(help="HDF5 folder of replay-demos; default: data/raw/SUITE.")]
Tasks = Annotated[str | None, typer.Option(help="Task numbers, such as 0-2,5; default: all.")]
FirstInit = Annotated[
    int | None, typer.Option(min=0, help="First initial state; default: past those of the demonstrations.")
]
Simulators = Annotated[int, typer.Option(min=1, help="Simulator processes, up to 2.4 GiB each.")]
Replan = Annotated[
    int | None, typer.Option(min=1, help="Actions executed of each chunk; default: half; in LIBERO 1, ensembled.")
]
Ensemble = Annotated[
    float | None, typer.Option(help="Temporal ensembling weight, negative for the newest; default: off.")
]
Vote = Annotated[bool, typer.Option("--vote", help="Average the chunks that agree with the newest.")]
LatencySteps = Annotated[int, typer.Option(min=0, help="Steps until a chunk can be used; older ones go on.")]
Closed = Annotated[
    bool, typer.Option("--closed", help="An instruction that was not trained on is an error, instead of embedded.")
]
UsualSuite = Annotated[
    str | None,
    typer.Option("--suite", help="Such as libero_object; default: the one whose tasks the checkpoint was trained on."),
]
UnknownInstructions = Annotated[
    bool,
    typer.Option("--unknown-instructions", help="Also try tasks whose instruction was not trained on; results say it."),
]
EulerSteps = Annotated[int | None, typer.Option(min=1, help="Sampling steps; default: as in training.")]
Told = Annotated[
    str | None, typer.Option("--goals", help="A policy that takes goals is told them by language, or by an image.")
]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Default: the suite's usual limit.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="float32 or bfloat16, of the large matrix products.")]
Videos = Annotated[int, typer.Option(min=0, help="Trials a task drawn as animated GIFs.")]
Preset = Annotated[str | None, typer.Option("--preset", help="base (the default), original, small or tiny.")]
Recipe = Annotated[str | None, typer.Option(help="tabletop, libero, systems, documents, or a YAML file.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with the same keys as --set.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one key: training.batch_size=32.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; default: beside the checkpoint's run.")]
