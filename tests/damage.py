"""What a bad disk does to files."""

import pathlib

DAMAGE = ("truncate", "empty", "flip", "delete")


def harm(path: pathlib.Path, how: str, at: float = 0.5) -> None:
    """Does one of DAMAGE to a file; a bit is flipped after the share `at` of its bytes."""
    content = bytearray(path.read_bytes())
    if how == "truncate":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "flip":
        content[int(at * len(content))] ^= 1
    path.unlink()
    if how != "delete":
        path.write_bytes(content)
