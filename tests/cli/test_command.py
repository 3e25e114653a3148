import errno

import pytest
import typer

from cli.command import exit_on_vla_error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "error: out of memory; use"),
        (
            MemoryError("Unable to allocate\n9 GiB"),
            "error: out of memory: Unable to allocate 9 GiB; use",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a"),
            "error: runs/a: No space left on device; free some space",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "a"),
            "error: a: Read-only file system; choose",
        ),
    ],
)
def test_a_full_memory_or_disk_is_one_line_and_not_a_traceback(capsys, error, line):
    with pytest.raises(typer.Exit) as caught, exit_on_vla_error("nothing was changed"):
        raise error
    assert caught.value.exit_code == 2
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(line)


def test_an_error_that_is_not_about_disks_gets_no_advice_about_disks(capsys):
    with pytest.raises(typer.Exit), exit_on_vla_error("nothing was changed"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    assert capsys.readouterr().err == "error: Connection refused\n"
