"""Damage files as a bad disk would."""

import pathlib

DAMAGE = ("truncate", "empty", "flip", "delete")


def damage_file(path: pathlib.Path, how: str) -> None:
    """Damage a file in one of the ways in DAMAGE."""
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
