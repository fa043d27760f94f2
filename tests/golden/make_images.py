"""Writes tests/golden/images: pictures of every PNG and JPEG form, and what Pillow makes of them.

    /usr/bin/python3 tests/golden/make_images.py     # rewrites the folder; Pillow 9.4, numpy

expected.safetensors holds, all u8: for each picture FILE "FILE.L" [h,w] and "FILE.RGB" [h,w,3], the
bytes of Image.open(FILE).convert("L" or "RGB"); for each resize case K "resize.K.in" [h,w,c] and
"resize.K.out" [H,W,c], the bytes of resize((W, H), BILINEAR). The PNGs are packed by hand, because
Pillow cannot write most of these forms.
"""
import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

import safetensors_io

FOLDER = pathlib.Path(__file__).parent / "images"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
WHOLE = [(0, 0, 1, 1)]
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1)]  # first row, first column, row step, column step

RESIZES = [((28, 28, 1), (32, 32)), ((28, 28, 1), (64, 64)), ((28, 28, 1), (16, 16)),
           ((28, 28, 1), (28, 28)), ((28, 28, 3), (28, 9)), ((28, 28, 3), (9, 28)),
           ((37, 23, 3), (20, 31)), ((37, 23, 1), (20, 11)), ((1, 1, 3), (5, 7)),
           ((5, 7, 3), (1, 1)), ((3, 50, 1), (50, 3)), ((13, 17, 3), (32, 32)),
           ((100, 3, 1), (7, 90)), ((64, 48, 1), (33, 47)), ((9, 9, 1), (31, 65))]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack_rows(samples, depth):
    """Rows [h, w*samples] of values below 2^depth as PNG packs them, each after filter byte 0."""
    rows = []
    for row in samples:
        bits = ((row[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
        rows.append(b"\0" + np.packbits(bits.reshape(-1)).tobytes())
    return b"".join(rows)


def png(pixels, depth, colour, extra=b"", interlaced=False):
    """pixels: [h, w, samples] of ints below 2^depth. extra: chunks before the data."""
    h, w, samples = pixels.shape
    assert samples == SAMPLES[colour]
    data = b""
    for row, column, row_step, column_step in ADAM7 if interlaced else WHOLE:
        part = pixels[row::row_step, column::column_step]
        if part.size:
            data += pack_rows(part.reshape(part.shape[0], -1), depth)
    header = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlaced)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra +
            chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))


def pngs(rng):
    def noise(depth, colour, h=7, w=11):
        return rng.integers(0, 1 << depth, (h, w, SAMPLES[colour]))

    def palette(size):
        return chunk(b"PLTE", rng.integers(0, 256, (size, 3), dtype=np.uint8).tobytes())

    files = {}
    for depth in 1, 2, 4, 8, 16:
        files[f"grey{depth}.png"] = png(noise(depth, GREY), depth, GREY)
    for depth in 1, 2, 4, 8:
        files[f"palette{depth}.png"] = png(noise(depth, PALETTE), depth, PALETTE,
                                           palette(1 << depth))
    for name, colour in ("rgb", RGB), ("grey_alpha", GREY_ALPHA), ("rgba", RGBA):
        for depth in 8, 16:
            files[f"{name}{depth}.png"] = png(noise(depth, colour), depth, colour)
    # 16-bit grey around the clip at 255.
    files["grey16_dark.png"] = png(noise(9, GREY), 16, GREY)
    files["palette8_trns.png"] = png(noise(8, PALETTE), 8, PALETTE,
                                     palette(256) + chunk(b"tRNS", bytes(range(0, 250, 5))))
    files["grey1_trns.png"] = png(noise(1, GREY), 1, GREY, chunk(b"tRNS", b"\0\1"))
    files["grey8_trns.png"] = png(noise(6, GREY), 8, GREY, chunk(b"tRNS", b"\0\5"))
    files["rgb8_trns.png"] = png(noise(1, RGB), 8, RGB, chunk(b"tRNS", b"\0\1\0\1\0\1"))
    files["rgb16_trns.png"] = png(noise(1, RGB), 16, RGB, chunk(b"tRNS", b"\0\1\0\1\0\1"))
    files["rgb8_gamma.png"] = png(noise(8, RGB), 8, RGB, chunk(b"gAMA", struct.pack(">I", 100000)))
    files["one_pixel.png"] = png(noise(8, RGB, 1, 1), 8, RGB)
    for name, depth, colour in (("grey1", 1, GREY), ("grey4", 4, GREY), ("grey16", 16, GREY),
                                ("palette2", 2, PALETTE), ("rgb8", 8, RGB), ("rgba16", 16, RGBA)):
        extra = palette(4) if colour == PALETTE else b""
        files[f"{name}_interlaced.png"] = png(noise(depth, colour, 9, 13), depth, colour, extra,
                                              interlaced=True)
    files["narrow_interlaced.png"] = png(noise(8, GREY, 5, 1), 8, GREY, interlaced=True)
    smooth = np.add.outer(np.arange(24), np.arange(40) * 3).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(smooth).save(out, "PNG")  # with Pillow's choice of row filters
    files["grey8_filters.png"] = out.getvalue()
    return files


def jpegs(rng):
    y, x = np.mgrid[0:29, 0:37]
    colour = np.stack([6 * x, 8 * y, 255 - 3 * (x + y)], -1).clip(0, 255)
    colour = (colour + rng.integers(-20, 21, colour.shape)).clip(0, 255).astype(np.uint8)
    ink = np.concatenate([colour, (5 * (x - y) % 256)[..., None].astype(np.uint8)], -1)
    cmyk = Image.frombytes("CMYK", (37, 29), ink.tobytes())
    files = {}

    def save(name, image, **options):
        out = io.BytesIO()
        image.save(out, "JPEG", **options)
        files[name] = out.getvalue()

    save("grey.jpg", Image.fromarray(colour[..., 0]), quality=90)
    save("rgb_444.jpg", Image.fromarray(colour), quality=95, subsampling="4:4:4")
    save("rgb_422.jpg", Image.fromarray(colour), quality=80, subsampling="4:2:2")
    save("rgb_420.jpg", Image.fromarray(colour), quality=75, subsampling="4:2:0")
    save("rgb_progressive.jpg", Image.fromarray(colour), quality=85, progressive=True)
    save("cmyk.jpg", cmyk, quality=90)
    # The same bytes called YCCK: only the transform flag of the Adobe marker differs.
    adobe = files["cmyk.jpg"].index(b"Adobe")
    ycck = bytearray(files["cmyk.jpg"])
    ycck[adobe + 11] = 2
    files["ycck.jpg"] = bytes(ycck)
    return files


def resizes(rng):
    tensors = {}
    for number, ((h, w, c), (out_h, out_w)) in enumerate(RESIZES):
        source = rng.integers(0, 256, (h, w, c), dtype=np.uint8)
        if number % 3 == 2:
            source = np.where(source > 127, 255, 0).astype(np.uint8)  # extremes must not wrap
        image = Image.fromarray(source[..., 0] if c == 1 else source)
        resized = np.asarray(image.resize((out_w, out_h), Image.BILINEAR))
        tensors[f"resize.{number}.in"] = source
        tensors[f"resize.{number}.out"] = resized.reshape(out_h, out_w, c)
    return tensors


def main():
    rng = np.random.default_rng(20240)
    FOLDER.mkdir(exist_ok=True)
    tensors = {}
    for name, content in {**pngs(rng), **jpegs(rng)}.items():
        (FOLDER / name).write_bytes(content)
        for mode in "L", "RGB":
            tensors[f"{name}.{mode}"] = np.asarray(Image.open(io.BytesIO(content)).convert(mode))
    tensors.update(resizes(rng))
    safetensors_io.save(FOLDER / "expected.safetensors", tensors, {})


if __name__ == "__main__":
    main()
