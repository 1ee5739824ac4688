"""Malicious weight files: refused by a single-line error, in little memory, running no code."""

import io
import json
import pathlib
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from golden_files import GOLDEN
from tiny_memory import little_memory
from tiny_weights import save_weights

from vit_jax import pretrained
from vit_jax.cli import convert, predict
from vit_jax.pretrained import files
from vit_jax.runtime.errors import UserError

GIVEN = {"model.num_heads": 3, "model.gelu": "erf", "model.pool": "cls", "data.image_size": 12}


class Trap:
    """Write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.write_text, (self.path, "sprung")


def npy(header, data=b"", version=1):
    """Encode an .npy file with an arbitrary header."""
    text = header.encode() if isinstance(header, str) else repr(header).encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def header_of(shape, descr="<f4"):
    return {"descr": descr, "fortran_order": False, "shape": shape}


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tensors(header, data=b"", length=None):
    """Encode a .safetensors file with an arbitrary header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def assert_refused(path, pattern=None):
    """Reading raises a short single-line error and needs little memory."""
    with little_memory(), pytest.raises(UserError, match=pattern) as error:
        pretrained.convert(path, GIVEN)
    message = str(error.value)
    assert str(path.parent) in message and "\n" not in message and len(message) < 600


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_not_loaded(tmp_path, protocol):
    sprung = tmp_path / "sprung"
    bomb = pickle.dumps({"weight": Trap(sprung)}, protocol)
    for name in ("model.pt", "model.bin", "model.npz", "model.safetensors", "model.npy"):
        (tmp_path / name).write_bytes(bomb)
        assert_refused(tmp_path / name)
    for name in ("zip.pt", "zip.npz", "zip.safetensors"):  # as torch.save writes since 1.6
        zipped(tmp_path / name, {"archive/data.pkl": bomb, "archive/data/0": bytes(64)})
        assert_refused(tmp_path / name)
    assert not sprung.exists()
    pickle.loads(bomb)
    assert sprung.exists(), "the trap does not work"


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    sprung = tmp_path / "sprung"
    objects = np.array([Trap(sprung)], object)
    np.savez(tmp_path / "a.npz", **{"embedding/kernel": objects})
    assert_refused(tmp_path / "a.npz", "Python objects")
    buffer = io.BytesIO()
    np.save(buffer, objects)
    (tmp_path / "b.npz").write_bytes(buffer.getvalue())  # an .npy under another name
    assert_refused(tmp_path / "b.npz")
    fields = npy(header_of((1,), [("a", "|O")]), pickle.dumps([Trap(sprung)]))
    zipped(tmp_path / "c.npz", {"embedding/kernel.npy": fields})
    assert_refused(tmp_path / "c.npz")
    assert not sprung.exists()


FLOATS, DAMAGED, UNKNOWN = bytes(16), "is damaged or not a weight file", "has no known layout"
NPZ = {
    "shape": {"a.npy": npy(header_of((10**12,)), FLOATS)},
    "shape that overflows": {"a.npy": npy(header_of((2**40, 2**40)), FLOATS)},
    "negative shape": {"a.npy": npy(header_of((-4,)), FLOATS)},
    "two negatives": {"a.npy": npy(header_of((-2, -2)), FLOATS)},
    "shape of strings": {"a.npy": npy(header_of(("4",)), FLOATS)},
    "longer than declared": {"a.npy": npy(header_of((3,)), FLOATS)},
    "no shape": {"a.npy": npy({"descr": "<f4", "fortran_order": False}, FLOATS)},
    "wide type": {"a.npy": npy(header_of((1,), "|S99999999"), FLOATS)},
    "text": {"a.npy": npy(header_of((1,), "<U4"), FLOATS)},
    "not a literal": {"a.npy": npy("__import__('os').system('true')", FLOATS)},
    "deep": {"a.npy": npy("(" * 5000, FLOATS)},
    "deep negation": {"a.npy": npy("-" * 9000 + "1", FLOATS)},
    "long header": {"a.npy": npy(" " * 60000, FLOATS)},
    "version": {"a.npy": npy(header_of((4,)), FLOATS, 3)},
    "not npy": {"a.npy": b"text"},
    "nothing": {},
    "twice": {"a": npy(header_of((4,)), FLOATS), "a.npy": npy(header_of((4,)), FLOATS)},
    "path": {"../../a.npy": npy(header_of((4,)), FLOATS), "/b.npy": npy(header_of((4,)), FLOATS)},
}


@pytest.mark.parametrize("kind", NPZ)
def test_malformed_npz_are_refused(tmp_path, kind):
    (tmp_path / "in/side").mkdir(parents=True)
    path = zipped(tmp_path / "in/side/x.npz", NPZ[kind])
    expected = {"text": "which is not numeric", "nothing": UNKNOWN, "path": UNKNOWN}
    assert_refused(path, expected.get(kind, DAMAGED))
    assert {path.name for path in tmp_path.rglob("*")} == {"in", "side", "x.npz"}


def test_zip_bombs_are_refused_without_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "UNPACKED_BYTES", 2**20)
    bomb = zipped(tmp_path / "bomb.npz", {"a.npy": npy(header_of((2**20,)), bytes(2**22))})
    assert bomb.stat().st_size < 2**13
    assert_refused(bomb, "is too large: 4,194,")
    whole = bomb.read_bytes()
    offset = whole.index(b"PK\x01\x02") + 24  # of the size in the central directory
    lie = whole[:offset] + struct.pack("<I", 200) + whole[offset + 4 :]
    (tmp_path / "lie.npz").write_bytes(lie)
    assert_refused(tmp_path / "lie.npz")


SAFETENSORS = {
    "header of 2^63 bytes": tensors(b"{}", length=2**63),
    "header of 99 MB": tensors(b"{}", length=99_000_000),
    "header beyond the file": tensors(b"{}", length=999),
    "no array": tensors({"__metadata__": {"format": "pt"}}),
    "no header": b"\0" * 9,
    "half a length": b"\x02\0\0",
    "not JSON": tensors(b"{nothing"),
    "deep": tensors(b'{"a":' * 20000),
    "a list": tensors([tensor(0, 4)], FLOATS),
    "beyond the end": tensors({"a": tensor(0, 400, (100,))}, FLOATS),
    "far beyond": tensors({"a": tensor(0, 2**62, (2**60,))}, FLOATS),
    "negative": tensors({"a": tensor(-4, 0)}, FLOATS),
    "backwards": tensors({"a": tensor(16, 0, (4,))}, FLOATS),
    "overlap": tensors({"a": tensor(0, 16, (4,)), "b": tensor(8, 16, (2,))}, FLOATS),
    "same bytes": tensors({"a": tensor(0, 16, (4,)), "b": tensor(0, 16, (4,))}, FLOATS),
    "hole": tensors({"a": tensor(0, 4), "b": tensor(12, 16)}, FLOATS),
    "rest": tensors({"a": tensor(0, 4)}, FLOATS),
    "shape": tensors({"a": tensor(0, 16, (5,))}, FLOATS),
    "shape that overflows": tensors({"a": tensor(0, 16, (2**62, 2**62, 4))}, FLOATS),
    "negative shape": tensors({"a": tensor(0, 16, (-2, -2))}, FLOATS),
    "type": tensors({"a": tensor(0, 16, (4,), "PICKLE")}, FLOATS),
    "no offsets": tensors({"a": {"dtype": "F32", "shape": [4]}}, FLOATS),
    "twice": tensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        FLOATS,
    ),
    "other weights": tensors({"../../a": tensor(0, 16, (4,))}, FLOATS),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_malformed_safetensors_are_refused(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[kind])
    assert_refused(path, UNKNOWN if kind in ("no array", "other weights") else DAMAGED)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_larger_than_memory_is_refused(tmp_path):
    path, size = tmp_path / "model.safetensors", 2**42
    with path.open("wb") as file:  # a sparse file
        header = tensors({"a": tensor(0, size, (size // 4,))})
        file.write(header)
        file.truncate(len(header) + size)
    assert_refused(path, "is too large: 4,398,046,")


@pytest.mark.parametrize("name", ["timm/model.safetensors", "npz/model.npz"])
def test_random_damage_is_refused_or_harmless(tmp_path, name):
    """Random bytes either raise a single-line error or give weights."""
    whole, rng = (GOLDEN / name).read_bytes(), np.random.default_rng(0)
    path = tmp_path / pathlib.Path(name).name
    refused = 0
    for round_ in range(30):
        content = bytearray(whole)
        # Mostly the header of the former and the directory of the latter.
        where = rng.integers(0, 3000, 3) if path.suffix != ".npz" else -rng.integers(1, 3000, 3)
        for offset in where if round_ % 2 else rng.integers(0, len(whole), 3):
            content[offset] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            pretrained.convert(path, GIVEN)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


HEADS = {"num_attention_heads": 3, "hidden_act": "gelu", "global_pool": "token", "image_size": 12}
SIDE_CONFIGS = {
    "depth": HEADS | {"num_hidden_layers": 10**9},
    "width": HEADS | {"hidden_size": 10**18},
    "patches": HEADS | {"patch_size": -4},
    "heads": HEADS | {"num_attention_heads": 10**9},
    "heads as a string": HEADS | {"num_attention_heads": "__import__('os')"},
    "sides": HEADS | {"image_size": [12, "12"]},
    "no sides": HEADS | {"image_size": []},
    "crop": HEADS | {"pretrained_cfg": {"crop_pct": 1e-300}},
    "crop as a string": HEADS | {"pretrained_cfg": {"crop_pct": "x"}},
    "resize mode": HEADS | {"pretrained_cfg": {"crop_mode": "border"}},
    "interpolation": HEADS | {"pretrained_cfg": {"interpolation": "random"}},
    "eps": HEADS | {"layer_norm_eps": float("nan")},
    "eps as a string": HEADS | {"layer_norm_eps": "1e-6"},
    "negative eps": HEADS | {"layer_norm_eps": -1.0},
    "tiny eps": HEADS | {"layer_norm_eps": 1e-300},
    "mean": HEADS | {"pretrained_cfg": {"mean": [1e300, 0.5, 0.5]}},
    "mean of bytes": HEADS | {"pretrained_cfg": {"mean": [123.7, 116.3, 103.5]}},
    "std": HEADS | {"pretrained_cfg": {"std": [0.0, 0.5, 0.5]}},
    "two": HEADS | {"pretrained_cfg": {"mean": [0.5, 0.5]}},
    "tower": HEADS | {"vision_config": "x"},
    "count of patches": HEADS | {"num_patches": -4, "patch_size": 4},
    "count of patches as a string": HEADS | {"num_patches": "9", "patch_size": 4},
    "model type": HEADS | {"model_type": ["vit"]},
    "norm": HEADS | {"model_args": {"norm_layer": "x"}},
    "names": HEADS | {"label_names": [{"x": 1}] * 7},
    "names as a string": HEADS | {"label_names": "abcdefg"},
    "number of a class": HEADS | {"id2label": {"9" * 5000: "x"}},
    "deep": "[" * 100_000,
    "large": "[" + "0," * 2**23 + "0]",
    "bytes": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("kind", SIDE_CONFIGS)
def test_malformed_configs_next_to_the_weights_are_refused(tmp_path, kind):
    shutil.copy(GOLDEN / "timm/model.safetensors", tmp_path)
    content = SIDE_CONFIGS[kind]
    content = json.dumps(content) if isinstance(content, dict) else content
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        pretrained.convert(tmp_path / "model.safetensors", {})
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_class_names_cannot_contain_terminal_escapes(tmp_path):
    shutil.copy(GOLDEN / "timm/model.safetensors", tmp_path)
    names = ["\x1b[2Jcat", "a\nb", *"cdefg"]
    (tmp_path / "config.json").write_text(json.dumps(HEADS | {"label_names": names}))
    names = pretrained.convert(tmp_path / "model.safetensors", {}).info["class_names"]
    assert names == ["\\x1b[2Jcat", "a\\nb", *"cdefg"]


SETTINGS = {
    "model.depth": 10**9,
    "model.hidden_size": 10**9,
    "model.num_heads": 0,
    "model.norm_eps": "x",
    "data.image_size": 10**6,
    "data.mean": [0.1, 0.2],
    "optim.unknown": 1,
    "model.mlp_dim": 17,  # valid, but not that of the weights
}


@pytest.mark.parametrize("key", SETTINGS)
def test_a_checkpoint_with_wrong_settings_is_refused(tmp_path, capsys, key):
    folder = save_weights(tmp_path / "w", model__depth=1)
    info = json.loads((folder / "model.json").read_text())
    info["settings"][key] = SETTINGS[key]
    (folder / "model.json").write_text(json.dumps(info))
    image = GOLDEN.parent.parent / "docs/digits_patch.png"
    assert predict.main([str(folder), str(image)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert key in error or "do not match their settings: Transformer" in error


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": [1, 2, 3]},
        {"class_names": ["a"]},
        {"num_classes": 10**9},
        {"num_classes": "3"},
        {"settings": []},
        {"checksum": []},
    ],
    ids=str,
)
def test_a_damaged_model_json_is_refused(tmp_path, change):
    folder = save_weights(tmp_path / "w", model__depth=1)
    info = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(info | change))
    with pytest.raises(UserError, match="model.json is damaged|should have the shape"):
        weights = pretrained.load(folder)
        pretrained.check_shapes(weights)


def test_the_command_prints_a_single_line_error(tmp_path, capsys):
    sprung = tmp_path / "sprung"
    (tmp_path / "model\n\x1b[2J.bin").write_bytes(pickle.dumps(Trap(sprung)))
    assert convert.main([str(tmp_path / "model\n\x1b[2J.bin"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "\x1b" not in error
    assert "is a pickle" in error and not sprung.exists() and not (tmp_path / "out").exists()


def test_large_but_valid_weights_are_read(tmp_path):
    """The limits are far above the sizes of real weights."""
    arrays = safetensors.numpy.load_file(GOLDEN / "timm/model.safetensors")
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros((2**22,), np.float32), **arrays)
    with pytest.raises(UserError, match="no known layout"):  # read, but with unknown names
        pretrained.convert(tmp_path / "a.npz", {})
