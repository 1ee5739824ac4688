"""Random access to TFRecord files, without TensorFlow."""

import mmap
import os
import struct
from collections.abc import Sequence

import numpy as np

from vit_jax.data import decoded
from vit_jax.runtime.errors import UserError

_HEADER = struct.Struct("<QI")  # length of the record, and a checksum of these eight bytes
_FOOTER = 4  # bytes of the checksum of the content


class Records:
    """The serialised examples of a split.

    An index of all records is made at the first opening and cached. It verifies the checksums of
    the lengths; those of the contents are not verified, which would take longer than decoding.
    """

    def __init__(self, pieces: Sequence[tuple[str, int, int]]):
        """Open (path, first record, number of records) of each file; raises UserError."""
        self._pieces, paths = pieces, [path for path, _, _ in pieces]
        name = decoded.identity("tfrecord", decoded.state_of(paths))
        tables = decoded.cached(name, lambda: tuple(map(_index, paths)))
        self._files, rows = [_map(path) for path in paths], []
        for number, ((path, first, count), table) in enumerate(zip(pieces, tables, strict=True)):
            if len(table) < first + count:
                raise UserError(f"{path} has {len(table)} records instead of {first + count}")
            rows.append(np.insert(table[first : first + count], 0, number, axis=1))
        self._rows = np.concatenate(
            [np.empty((0, 3), int), *rows]
        )  # file, start and length of each record

    def __reduce__(self):  # worker processes map the files again
        return Records, (self._pieces,)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, i: int) -> bytes:
        file, start, length = self._rows[i]
        return self._files[file][start : start + length]


def _crc_row(value):
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = [_crc_row(value) for value in range(256)]  # CRC-32C (RFC 3720, appendix B.4)


def _masked_crc(data):
    """Compute the CRC-32C of bytes, rotated and shifted as in TFRecord."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _map(path):
    with open(path, "rb") as file:
        if not os.path.getsize(path):  # which cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _index(path):
    """List the start and length of the records of a file, int64 [n, 2]."""
    content, position, rows = _map(path), 0, []
    while position < len(content):
        start = position + _HEADER.size
        header = content[position:start]
        length, checksum = _HEADER.unpack(header) if len(header) == _HEADER.size else (0, None)
        position = start + length + _FOOTER
        if checksum != _masked_crc(header[:8]) or position > len(content):
            raise UserError(f"{path} is damaged or cut off at byte {start - _HEADER.size}")
        rows.append((start, length))
    return np.array(rows, np.int64).reshape(-1, 2)
