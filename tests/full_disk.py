"""Fills the disk under a sweep again and again, and shows that nothing is lost.

python tests/full_disk.py --workdir=DIR     (as root, on Linux: it mounts a small tmpfs)

A sweep on the digits runs on a disk with ever more room, from none to enough. Each time it ends in
one sentence that names a file, or it ends well; room is made, the same command goes on, and the
results are those of an undisturbed run, to the bit.
"""

import contextlib
import shutil
import subprocess
import sys

from storm import assert_same_sweep, checksums, parse, run, write_config

DISK = 4 << 20


@contextlib.contextmanager
def small_disk(folder):
    """Mounts a disk of a few MiB on a folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"skipped: no tmpfs can be mounted here ({done.stderr.strip()})")
        sys.exit()
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(disk, room):
    """Fills a disk but for `room` bytes."""
    with (disk / "filler").open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - room)))


def main(folder):
    """Runs all and prints what happened."""
    arguments, log = write_config(folder, variants=1, epochs=1.0, eval_every=0.25), folder / "log"
    calm, disk = folder / "undisturbed" / "sweep", folder / "disk"
    assert run([*arguments, f"--workdir={calm}"], log) == 0, log.read_text()
    size = sum(path.stat().st_size for path in calm.rglob("*") if path.is_file())
    print(f"the sweep takes {size / 1024:.0f} KiB", flush=True)
    failures = 0
    with small_disk(disk):
        for room in (0, *(int(size * 1.6 * i / 14) for i in range(1, 15))):
            workdir = disk / "sweep"
            fill(disk, room)
            log.unlink()
            status = run([*arguments, f"--workdir={workdir}"], log)
            text = log.read_text()
            assert "Traceback" not in text and "Exception ignored" not in text, text
            (disk / "filler").unlink()
            if status:
                failures += 1
                (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
                assert status == 1 and str(disk) in error and "No space left" in error, text
                error = error.replace(str(folder), "")
                print(f"{room / 1024:5.0f} KiB of room: {error}", flush=True)
                assert run([*arguments, f"--workdir={workdir}"], log) == 0, log.read_text()
            assert_same_sweep(workdir, calm, checksums)
            shutil.rmtree(workdir)
    assert failures > 5
    print(f"{failures} times the disk was full: one sentence each, and nothing was lost")


if __name__ == "__main__":
    main(parse(__doc__).workdir)
