"""Decoding and squaring, against pixels that were put there by hand."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

import diffusion_bridge_vq.data.images as images_module
from diffusion_bridge_vq.data import BrokenImageError, ImageDataset
from diffusion_bridge_vq.data.decoding import decode_image


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def decoded_hwc(image, resolution, channels=3, kind="PNG", **options):
    return decode_image(encode(image, kind, **options), resolution, channels).transpose(1, 2, 0)


def random_pixels(*shape):
    """Of torch's generator, which begins anew with every test."""
    return torch.randint(256, shape, dtype=torch.uint8).numpy()


def random_rgb(height, width):
    return random_pixels(height, width, 3)


@pytest.fixture
def on_access(monkeypatch):
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 0)


def test_rgb_pixels_come_out_exactly():
    pixels = random_rgb(5, 5)
    item = ImageDataset([encode(Image.fromarray(pixels))], name="one", resolution=5)[0]
    assert set(item) == {"images"}
    assert item["images"].dtype == torch.uint8
    np.testing.assert_array_equal(item["images"].numpy(), pixels.transpose(2, 0, 1))


def test_a_file_is_read_from_its_path(tmp_path):
    pixels = random_rgb(3, 3)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    record = {"bytes": None, "path": str(tmp_path / "a.bmp")}
    np.testing.assert_array_equal(decode_image(record, 3, 3), pixels.transpose(2, 0, 1))


def test_gray_to_rgb_and_rgb_to_gray():
    gray = random_pixels(4, 4)
    np.testing.assert_array_equal(decoded_hwc(Image.fromarray(gray), 4), np.stack([gray] * 3, -1))
    np.testing.assert_array_equal(decoded_hwc(Image.fromarray(gray), 4, channels=1)[..., 0], gray)
    rgb = random_rgb(4, 4)
    luma = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    np.testing.assert_allclose(decoded_hwc(Image.fromarray(rgb), 4, channels=1)[..., 0], luma, atol=0.51)


def test_transparency_goes_over_white():
    rgba = random_pixels(4, 4, 4)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    alpha = rgba[..., 3:] / 255
    got = decoded_hwc(Image.fromarray(rgba), 4)
    np.testing.assert_allclose(got, alpha * rgba[..., :3] + (1 - alpha) * 255, atol=1)
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[0, 1].tolist() == rgba[0, 1, :3].tolist()

    gray_alpha = Image.fromarray(np.array([[[10, 255], [10, 0]], [[10, 0], [10, 255]]], dtype=np.uint8), "LA")
    assert decoded_hwc(gray_alpha, 2, channels=1)[..., 0].tolist() == [[10, 255], [255, 10]]


def test_palettes():
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    colors = [[250, 10, 20], [0, 200, 3], [7, 8, 9]]
    palette.putpalette(np.ravel(colors).tolist())
    assert decoded_hwc(palette, 2).tolist() == [[colors[0], colors[1]], [colors[2], colors[1]]]
    see_through = decoded_hwc(palette, 2, transparency=1)  # color 1 is transparent
    assert see_through.tolist() == [[colors[0], [255] * 3], [colors[2], [255] * 3]]


def test_cmyk_and_bilevel():
    inks = Image.fromarray(np.array([[[255, 0, 0, 0], [0, 255, 0, 0]], [[0, 0, 0, 255], [0] * 4]], np.uint8), "CMYK")
    cyan, magenta, black, white = [0, 255, 255], [255, 0, 255], [0] * 3, [255] * 3
    assert decoded_hwc(inks, 2, kind="TIFF").tolist() == [[cyan, magenta], [black, white]]
    bits = Image.fromarray(np.array([[True, False], [False, True]]))
    assert decoded_hwc(bits, 2, channels=1)[..., 0].tolist() == [[255, 0], [0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled(kind):
    wide = np.array([[0, 128, 129], [257, 1000, 32768], [65279, 65406, 65535]], dtype=np.uint16)
    got = decoded_hwc(Image.fromarray(wide), 3, channels=1, kind=kind)[..., 0]
    np.testing.assert_array_equal(got, np.round(wide / 257))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_pixels_are_refused(dtype):
    with pytest.raises(ValueError, match="no known range"):
        decode_image(encode(Image.fromarray(np.ones((2, 2), dtype)), "TIFF"), 2, 1)


# How a stored array becomes the upright one, after the table of the EXIF standard.
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),  # 90 degrees clockwise
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation):
    stored = random_rgb(4, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decoded_hwc(Image.fromarray(stored), 4, exif=exif)
    np.testing.assert_array_equal(got, UPRIGHT[orientation](stored))


def test_exif_orientation_comes_before_the_crop():
    stored = random_rgb(3, 5)
    exif = Image.Exif()
    exif[0x0112] = 6
    got = decoded_hwc(Image.fromarray(stored), 3, exif=exif)
    np.testing.assert_array_equal(got, np.rot90(stored, -1)[1:4])


@pytest.mark.parametrize(
    ("height", "width", "top", "left"), [(4, 7, 0, 1), (4, 8, 0, 2), (9, 4, 2, 0), (5, 4, 0, 0), (4, 4, 0, 0)]
)
def test_crop_is_the_centre(height, width, top, left):
    pixels = random_rgb(height, width)
    got = decoded_hwc(Image.fromarray(pixels), 4)
    np.testing.assert_array_equal(got, pixels[top : top + 4, left : left + 4])


def test_long_side_is_cropped_not_squeezed():
    wide = np.full((8, 16, 3), 77, dtype=np.uint8)
    wide[:, [0, -1]] = 255  # out of the reach of the filter for the middle half
    assert (decoded_hwc(Image.fromarray(wide), 4) == 77).all()
    tall = wide.transpose(1, 0, 2)
    assert (decoded_hwc(Image.fromarray(tall), 4) == 77).all()


def test_scaling_keeps_a_linear_ramp():
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 16, (16, 1))
    # The center of output pixel j lies at (j + 0.5) * 16 / n - 0.5, and the kernel reproduces linear functions.
    up = decoded_hwc(Image.fromarray(ramp), 32, channels=1)[..., 0]
    np.testing.assert_allclose(up[:, 4:-4], np.tile(((np.arange(32) + 0.5) / 2 - 0.5) * 16, (32, 1))[:, 4:-4], atol=1)
    down = decoded_hwc(Image.fromarray(ramp), 8, channels=1)[..., 0]
    np.testing.assert_allclose(down[:, 2:-2], np.tile(((np.arange(8) + 0.5) * 2 - 0.5) * 16, (8, 1))[:, 2:-2], atol=1)


def good_and_broken(folder, broken):
    """Eight images a0.png ...; those in `broken` replaced by a broken file each."""
    pixels = [random_rgb(4, 4) for _ in range(8)]
    contents = [b"", b"no image at all", encode(Image.fromarray(random_rgb(4, 4)))["bytes"][:60]]
    records = []
    for i, array in enumerate(pixels):
        path = folder / f"a{i}.png"
        if i in broken:
            path.write_bytes(contents[broken.index(i) % 3])
        else:
            Image.fromarray(array).save(path)
        records.append({"bytes": None, "path": str(path)})
    return records, pixels


def test_all_broken_files_are_counted_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "CHUNK", 3)  # several chunks: their order and borders count
    records, _ = good_and_broken(tmp_path, [1, 3, 6])
    records.append({"bytes": None, "path": str(tmp_path / "gone.png")})
    with pytest.raises(ValueError, match="4 of 9 images can't be decoded") as caught:
        ImageDataset(records, name="set", resolution=4)
    message = str(caught.value)
    places = [message.index(str(tmp_path / name)) for name in ("a1.png", "a3.png", "a6.png", "gone.png")]
    assert places == sorted(places)
    assert "a0.png" not in message and "BytesIO" not in message
    assert message.count("not an image that Pillow knows") == 2
    assert "No such file" in message and "more" not in message


def test_names_of_broken_rows_end_somewhere():
    records = [encode(Image.new("L", (2, 2)))] + [{"bytes": b"x", "path": "b.png"}] * 12 + [None]
    with pytest.raises(ValueError, match="13 of 14 images") as caught:
        ImageDataset(records, name="rows", resolution=2)
    message = str(caught.value)
    assert "row 1 of rows, b.png" in message and "row 10 of rows" in message
    assert "row 11" not in message and "and 3 more" in message


def test_a_row_without_image_is_named():
    with pytest.raises(ValueError, match=r"2 of 2 .*row 0 of rows \(no image data\); row 1 of rows \(no image data\)"):
        ImageDataset([None, {"bytes": None, "path": None}], name="rows", resolution=2)


def test_on_access_the_broken_one_is_named_and_counted(tmp_path, on_access):
    records, pixels = good_and_broken(tmp_path, [2, 5])
    dataset = ImageDataset(records, name="set", resolution=4)
    np.testing.assert_array_equal(dataset[1]["images"].numpy(), pixels[1].transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"a2\.png can't be decoded .*so far: 1\)"):
        dataset[2]
    with pytest.raises(ValueError, match=r"a2\.png .*so far: 1\)"):  # the same one again is no second
        dataset[2]
    with pytest.raises(ValueError, match=r"a5\.png .*so far: 2\)"):
        dataset.__getitems__([4, 5])
    with pytest.raises(ValueError, match=r"a[25]\.png can't be decoded"):
        list(DataLoader(dataset, batch_size=4, num_workers=1))


def test_a_broken_image_can_be_replaced(tmp_path, on_access):
    """The advice works: the set keeps its fingerprint, so that a run resumes. Without the file it is another one."""
    records, pixels = good_and_broken(tmp_path, [2])
    with pytest.raises(BrokenImageError, match="Replace it under the same name, and `resume` takes the run on"):
        ImageDataset(records, name="set", resolution=4)[2]
    Image.fromarray(pixels[2]).save(tmp_path / "a2.png")
    whole = ImageDataset(records, name="set", resolution=4)
    np.testing.assert_array_equal(whole[2]["images"].numpy(), pixels[2].transpose(2, 0, 1))
    assert ImageDataset(records[:2] + records[3:], name="set", resolution=4).fingerprint != whole.fingerprint


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_has_its_own_exception(tmp_path, on_access, workers):
    records, _ = good_and_broken(tmp_path, [2])
    with pytest.raises(BrokenImageError, match=r"a2\.png can't be decoded"):
        list(DataLoader(ImageDataset(records, name="set", resolution=4), batch_size=4, num_workers=workers))


def labeled(count=10):
    pixels = np.stack([random_rgb(4, 4) for _ in range(count)])
    labels = torch.arange(count) % 3
    dataset = ImageDataset(
        [encode(Image.fromarray(array)) for array in pixels],
        name="set",
        resolution=4,
        labels=labels,
        class_names=["a", "b", "c"],
    )
    return dataset, torch.from_numpy(pixels).permute(0, 3, 1, 2), labels


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader_gives_each_image_with_its_label(in_memory, workers, monkeypatch):
    if not in_memory:
        monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 0)
    dataset, pixels, labels = labeled()
    batches = list(DataLoader(dataset, batch_size=4, num_workers=workers))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch["images"] for batch in batches]), pixels)
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), labels)
    assert batches[0]["labels"].dtype == torch.int64

    whole = list(DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=ImageDataset.collate))
    part = Subset(dataset, [9, 2, 4])
    some = list(DataLoader(part, batch_size=2, num_workers=workers, collate_fn=ImageDataset.collate))
    assert [set(batch) for batch in whole + some] == [{"images", "labels"}] * 5
    for name, expected in (("images", pixels), ("labels", labels)):
        assert torch.equal(torch.cat([batch[name] for batch in whole]), expected)
        assert torch.equal(torch.cat([batch[name] for batch in some]), expected[[9, 2, 4]])

    items = dataset.__getitems__([7, 0, 7])
    assert len(items) == 3 and len(list(items)) == 3
    assert [int(item["labels"]) for item in items] == [1, 0, 1]
    assert torch.equal(torch.stack([item["images"] for item in items]), pixels[[7, 0, 7]])


@pytest.mark.parametrize("in_memory", [True, False])
def test_pickle_round_trip(in_memory, monkeypatch):
    if not in_memory:
        monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 0)
    dataset, pixels, _ = labeled()
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == 10 and copy.class_names == ["a", "b", "c"] and copy.num_classes == 3
    assert torch.equal(copy[9]["images"], pixels[9]) and copy[9]["labels"] == 0


def test_writing_into_an_item_leaves_the_dataset_alone():
    dataset, pixels, _ = labeled()
    dataset[3]["images"].zero_()
    assert torch.equal(dataset[3]["images"], pixels[3])


@pytest.mark.filterwarnings("error")  # torch warns of memory that it mustn't write to
def test_items_decoded_on_access_are_writable(on_access):
    item = ImageDataset([encode(Image.new("L", (4, 4), 9))], name="gray", resolution=4, channels=1)[0]["images"]
    assert item.is_contiguous() and item.add_(1).unique().tolist() == [10]


def test_the_limit_counts_pixels(monkeypatch):
    records = [encode(Image.new("RGB", (4, 4)))] * 2 + [{"bytes": b"x", "path": None}]
    size = 3 * 3 * 4 * 4
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", size)
    with pytest.raises(ValueError, match="1 of 3"):
        ImageDataset(records, name="set", resolution=4)
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", size - 1)
    assert len(ImageDataset(records, name="set", resolution=4)) == 3


def fingerprint(pixels, resolution=4, **options):
    """Of a set with these images as PNG."""
    records = [encode(Image.fromarray(array)) for array in pixels]
    return ImageDataset(records, name="set", resolution=resolution, **options).fingerprint


def test_a_fingerprint_tells_sets_apart(monkeypatch):
    count = images_module.FINGERPRINTED
    pixels = np.stack([random_rgb(4, 4) for _ in range(count)])
    classes = {"labels": torch.arange(count) % 2, "class_names": ["a", "b"]}
    changed, other_labels = pixels.copy(), classes["labels"].clone()
    changed[count // 2, 0, 0, 0] ^= 1  # one bit of one image: with so few, all are looked at
    other_labels[3] = 1 - other_labels[3]
    found = [
        fingerprint(pixels),
        fingerprint(pixels, **classes),
        fingerprint(changed, **classes),
        fingerprint(pixels[::-1], **classes),
        fingerprint(np.concatenate([pixels, pixels[-1:]])),
        fingerprint(pixels[:-1]),
        fingerprint(pixels, **{**classes, "labels": other_labels}),
        fingerprint(pixels, **{**classes, "class_names": ["a", "c"]}),
        fingerprint(pixels, resolution=3),
        fingerprint(pixels, channels=1),
    ]
    assert len(set(found)) == len(found) and all(len(text) == 16 and int(text, 16) >= 0 for text in found)
    assert fingerprint(pixels, **classes) == found[1]
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 0)
    assert fingerprint(pixels, **classes) == found[1]  # wherever it is held


def test_a_fingerprint_looks_from_the_first_to_the_last_image():
    pixels = np.zeros((1000, 2, 2, 3), dtype=np.uint8)
    plain, seen = fingerprint(pixels, resolution=2), []
    for index in (0, 1, 500, 998, 999):
        changed = pixels.copy()
        changed[index] = 1
        seen.append(fingerprint(changed, resolution=2) != plain)
    assert seen[0] and seen[-1] and not seen[1] and not seen[3]  # as documented: a few dozen of them
