"""`labrig compact`: a smaller copy of a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labrig.commands.interruptible import interruptible


def compact(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording (HDF5).", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="The copy; by default FILE with .compact.h5.")
    ] = None,
) -> None:
    """Write a compressed copy of a recording: only committed rows, every chunk with a checksum.

    The copy is read like the recording, and nothing can be added to it. It is compared with the recording before it
    gets its name; the recording stays as it is.

    Example: labrig compact run.h5 -o run.compact.h5
    """
    from labrig.commands.byte_steps import byte_steps
    from labrig.recording.compaction import compact as write_compact

    target = output or file.with_suffix(".compact.h5")
    with interruptible("nothing of the copy is left, the recording is as it was"), byte_steps() as steps:
        done = write_compact(file, target, steps)
    before_mb, after_mb = done.before_bytes / 1e6, done.after_bytes / 1e6
    print(f"{target}: {after_mb:.1f} MB of {before_mb:.1f} MB, content sha256 {done.sha256}")
