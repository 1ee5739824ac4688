"""What a bad disk does to files."""

import pathlib

DAMAGE = ("truncate", "empty", "flip", "delete")


def harm(path: pathlib.Path, how: str) -> None:
    """Does one of DAMAGE to a file."""
    content = bytearray(path.read_bytes())
    if how == "truncate":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "flip":
        content[len(content) // 2] ^= 1
    path.unlink()
    if how != "delete":
        path.write_bytes(content)
