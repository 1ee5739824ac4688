"""Malicious images, folders and names: the right result or a single-line error."""

import io
import os
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_memory import little_memory
from tiny_weights import save_weights

from vit_jax import plots
from vit_jax.cli import predict, visualize
from vit_jax.config import get_config
from vit_jax.data.images import read_image
from vit_jax.data.sources import open_source
from vit_jax.evaluation.evaluate import make_report
from vit_jax.report import draw_confusion, write_test_report
from vit_jax.runtime.errors import UserError


def png(width, height, depth=8, kind=2, data=b""):
    """Encode a PNG with an arbitrary header."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(size=(24, 16)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))


JPEG, GIF = encoded(photo(), "jpeg"), encoded(photo(), "gif")
LARGE_JPEG = JPEG.replace(struct.pack(">HH", 16, 24), struct.pack(">HH", 60000, 60000), 1)
BROKEN = {
    "bomb.png": png(100_000, 100_000, 1, 0),
    "square.png": png(20_000, 20_000, data=bytes(99)),
    "bomb.jpg": LARGE_JPEG,
    "bomb.gif": GIF[:6] + b"\xff\xff\xff\xff" + GIF[10:],
    "bomb.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 2**30, 2**30, 1, 24, *[0] * 6),
    "no_width.png": png(0, 8),
    "no_data.png": png(8, 8),
    "empty.png": b"",
    "cut.jpg": JPEG[: len(JPEG) // 2],
    "cut.png": encoded(photo(), "png")[:400],
    "cut.gif": GIF[:300],
    "cut.webp": encoded(photo(), "webp")[:200],
    "start.jpg": JPEG[:3],
    "text.png": b"<svg onload='alert(1)'/>",
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%ls) (w) file\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_errors_with_the_file_name(tmp_path, monkeypatch, name):
    def run(*args, **options):
        raise AssertionError("an image made Pillow start another program")

    monkeypatch.setattr(subprocess, "Popen", run)
    (tmp_path / name).write_bytes(BROKEN[name])
    with little_memory(), pytest.raises(UserError, match=f"{name} cannot be read as an image"):
        read_image(tmp_path / name, 8, 3)


LEFT_RED = Image.new("RGB", (16, 16), (250, 0, 0))
LEFT_RED.paste((0, 0, 250), (8, 0, 16, 16))


def test_odd_exif_data_do_not_hide_the_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x0128] = 3, 2  # the unit of the resolution, made text below
    LEFT_RED.save(tmp_path / "x.jpg", exif=exif, quality=95)
    content = (tmp_path / "x.jpg").read_bytes()
    entry = content.index(bytes.fromhex("01280003"), content.index(b"Exif"))
    (tmp_path / "x.jpg").write_bytes(
        content[: entry + 2] + bytes.fromhex("00020000000261000000") + content[entry + 12 :]
    )
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.getexif()[0x0128] == "a"
    assert read_image(tmp_path / "x.jpg", 16, 3)[:, 10:, 0].min() > 200  # turned by 180 degrees


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    LEFT_RED.save(tmp_path / f"x.{suffix}", exif=exif, quality=95)
    image = read_image(tmp_path / f"x.{suffix}", 16, 3)
    # Position of the stored left side (EXIF 2.3, tag Orientation).
    side = {1: "left", 2: "right", 3: "right", 4: "left"}.get(orientation)
    side = side or {5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    region = {"left": np.s_[:, :6], "right": np.s_[:, 10:], "top": np.s_[:6], "bottom": np.s_[10:]}
    assert image[region[side]][..., 0].min() > 200 and image[region[side]][..., 2].max() < 50


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_image_with_damaged_exif_is_read(tmp_path):
    for exif in (b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40, b"\xff" * 60):
        LEFT_RED.save(tmp_path / "x.jpg", exif=exif, quality=95)
        assert read_image(tmp_path / "x.jpg", 16, 3)[8, 3, 0] > 200


def frames(kind):
    second = Image.new("RGB", (8, 8), (0, 0, 200))
    first = Image.new("RGB", (8, 8), (200, 0, 0))
    return encoded(first, kind, save_all=True, append_images=[second] * 30, lossless=True)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_an_animation_is_read(tmp_path, kind):
    content = frames(kind) if kind != "tiff" else encoded(Image.new("RGB", (8, 8), "red"), kind)
    (tmp_path / "x.gif").write_bytes(content)
    image = read_image(tmp_path / "x.gif", 4, 3)
    assert image[..., 0].min() > 190 and image[..., 1:].max() < 10


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (20_000, 30)])
def test_images_of_any_shape_are_read(tmp_path, size):
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png", 7, 3)
    assert image.shape == (7, 7, 3) and (image == (10, 200, 30)).all()


UNUSUAL = {
    "1": Image.new("1", (8, 8), 1),
    "LA": Image.new("LA", (8, 8), (255, 10)),
    "I;16B": Image.frombytes("I;16B", (8, 8), b"\xff\xff" * 64),
    "I": Image.new("I", (8, 8), 65535),
    "F": Image.new("F", (8, 8), 65535.0),
    "F of NaN": Image.new("F", (8, 8), float("nan")),
    "F of inf": Image.new("F", (8, 8), float("inf")),
    "YCbCr": Image.new("YCbCr", (8, 8), (255, 128, 128)),
    "CMYK": Image.new("CMYK", (8, 8), 0),
}


@pytest.mark.parametrize("mode", UNUSUAL)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_a_tiff_is_read(tmp_path, mode, channels):
    UNUSUAL[mode].save(tmp_path / "x.png", "tiff")
    image = read_image(tmp_path / "x.png", 4, channels)
    assert image.shape == (4, 4, channels)
    assert (image == 0).all() if mode == "F of NaN" else image.min() > 250


def test_images_with_a_transparent_colour_are_read(tmp_path):
    for mode, clear in (("L", 255), ("RGB", (255, 255, 255))):
        Image.new(mode, (8, 8), clear).save(tmp_path / "x.png", transparency=clear)
        assert read_image(tmp_path / "x.png", 4, 3).min() == 255


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp", "bmp", "tiff"])
def test_random_damage_is_an_error_or_harmless(tmp_path, kind):
    whole, rng = encoded(photo(), kind), np.random.default_rng(0)
    path, num_errors = tmp_path / "x.png", 0
    for _ in range(60):
        content = bytearray(whole)
        for offset in rng.integers(0, min(len(whole), 400), 3):
            content[offset] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            with little_memory():
                assert read_image(path, 8, 3).shape == (8, 8, 3)
        except UserError as error:
            num_errors += "\n" not in str(error)
    assert num_errors


def folder_of(root, classes, **keys):
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(root / name / f"{number}.png")
    config = get_config().data
    config.update({"name": "folder", "dir": str(root), "image_size": 8, "num_threads": 2} | keys)
    return config


NAMES = [
    "größe",
    "猫",
    "🐈‍⬛",
    "‏قطة",
    "a b",
    "-rf",
    "$\\frac{$",
    "x" * 255,
    "<b>&amp;",
    "CON",
    "~",
    "%s {0}",
]


def test_class_names_of_any_script_and_length_are_preserved(tmp_path):
    source = open_source(folder_of(tmp_path, NAMES))
    assert source.class_names == sorted(NAMES) and len(source.examples("")) == 3 * len(NAMES)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[2J", "a\x7f", "a\u2028b", b"\xff\xfe"])
def test_class_names_with_control_characters_are_refused(tmp_path, name):
    config = folder_of(tmp_path, ["ant", "bee"])
    os.mkdir(os.fsencode(tmp_path) + b"/" + os.fsencode(name))
    with pytest.raises(UserError, match="control character or invalid UTF-8 in its name"):
        open_source(config)


def test_files_that_are_not_images_are_not_opened(tmp_path, capsys):
    config = folder_of(tmp_path / "images", ["ant", "bee"])
    inside = tmp_path / "images/ant"
    os.mkfifo(inside / "pipe.png")  # opening it would block
    (inside / "device.png").symlink_to("/dev/zero")
    (inside / "loop.png").symlink_to("loop.png")
    (inside / "gone.png").symlink_to("nowhere")
    (inside / "up").symlink_to("..")
    (inside / "folder.png").mkdir()
    (inside / "bad\udcff\x1b[2J.txt").write_text("its name is not UTF-8")
    assert len(open_source(config).examples("")) == 6
    assert "bad\\udcff\\x1b[2J.txt" in capsys.readouterr().out
    assert predict.list_images([tmp_path / "images"]) == sorted(
        tmp_path / "images" / name / f"{i}.png" for name in ("ant", "bee") for i in range(3)
    )


def test_names_are_displayed_unchanged(tmp_path):
    names = [*NAMES, "a$b$c", "</td><img src=x>", "\\", "$x^2$"]
    report = make_report(np.eye(len(names)), np.arange(len(names)), names)
    draw_confusion(tmp_path / "confusion.png", "$\\frac{$", report)
    write_test_report(tmp_path / "report.txt", "a run", report, [])
    lines = (tmp_path / "report.txt").read_text("utf-8").splitlines()
    assert [line[:255].strip() for line in lines if line.endswith("       1")] == names
    draws = np.zeros((len(names), 1, 8, 8, 1), np.uint8)
    plots.save_contact_sheet(tmp_path / "sheet.png", names, {"$\\frac{$": draws})
    with Image.open(tmp_path / "sheet.png") as image:
        assert max(image.size) < 5000


def test_commands_handle_malicious_images(tmp_path, capsys):
    run = str(save_weights(tmp_path / "weights", model__depth=1))
    images = tmp_path / "images"
    images.mkdir()
    names = ["$\\frac{$.png", "<b>.png", "a\nb\x1b[2J.png", f"{'x' * 251}.png", "\udcff.png"]
    for name in names:
        photo((20, 10)).save(images / name, "png")
    out = tmp_path / "overlay"
    assert predict.main([run, str(images), f"--overlay={out}"]) == 0
    output = capsys.readouterr().out
    assert len(list(out.iterdir())) == len(names)
    assert output.count(" %  ") == 3 * len(names)
    assert "\x1b" not in output and "a\\nb\\x1b[2J" in output
    files = [str(images / name) for name in names]
    flags = ["attention_rollout", f"--out={tmp_path / 'figures'}", "--images", *files]
    assert visualize.main([run, *flags]) == 0
    (images / "bomb\n.png").write_bytes(BROKEN["bomb.png"])
    for arguments in ([run, str(images)], [run, str(images / "bomb\n.png")]):
        assert predict.main(arguments) == 1
    assert visualize.main([run, "--images", str(images / "bomb\n.png")]) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 3 == error.count("bomb\\n.png cannot be read as an image")
    assert error.count("\n") == 3
