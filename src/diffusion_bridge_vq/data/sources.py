"""`load_images`: the embedded digits, local folders in all their layouts, and datasets of the Hub."""

from typing import Any

from .digits import read_digits
from .folders import local_folder, read_folder
from .images import ImageDataset
from .tables import ImageColumn, find_image_column, load_table, read_labels

MAX_RESOLUTION = 8192  # as of the models


def load_images(
    dataset: str,
    *,
    resolution: int,
    channels: int = 3,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    in_memory: bool = True,
    condition_column: str | None = None,
) -> ImageDataset:
    """
    Load one split of an image dataset, as squares of one size.

    Images are turned upright (EXIF), converted to RGB or gray (transparency over white), scaled with bicubic
    interpolation so that the short side is `resolution`, and cropped to their center.

    Args:
        dataset (`str`): one of

            - "digits": 1797 handwritten digits that come with the package (splits train, test);
            - a folder of parquet files, as a dataset of the Hub has them (`train-00000-of-00001.parquet`, here or in
              `data/`). `datasets` copies them to its cache, and again when a file has changed;
            - a folder of tar shards as webdataset has them (`train-0000.tar`, here or in `data/`), with members
              such as `0001.jpg` and `0001.cls` or `0001.json`: columns jpg, cls, json. Copied to the cache, too;
            - a folder with `train.csv`, `val.csv`, `test.csv` (columns filename, label) next to `images/`, the layout
              of miniImageNet (splits train, validation, test);
            - a folder of images. Sub-folders train, val or validation, test are splits, without them all is "train";
              the folders inside are the classes, if there is more than one. Metadata files are not read. It is listed
              anew each time, into a temporary file;
            - else the id of a dataset on the Hub, such as "user/name", or "hf://datasets/user/name" where there is a
              folder `user` here.
        resolution (`int`): height and width of the images.
        channels (`int`, *optional*, defaults to 3): 3 for RGB, 1 for gray.
        split (`str`, *optional*, defaults to `"train"`): the split, by the name it has in the dataset.
        image_column (`str`, *optional*): the column of images; needed where there are several.
        label_column (`str`, *optional*): the column of classes. The default is the only ClassLabel column, if there is
            exactly one. Integers or strings become consecutive class ids in their sorted order, counted in this split.
            "json.label" is the field label of the column json. The texts of several columns, "name,style", are joined.
        in_memory (`bool`, *optional*, defaults to `True`): decode a set that fits into memory at once, otherwise all
            images on access.
        condition_column (`str`, *optional*): a second column of images, scaled and cropped alike, see
            [`ImageCondition`].

    Returns:
        `ImageDataset`: items `{"images": uint8 tensor (channels, resolution, resolution) in 0..255, "labels": int64
        scalar tensor}`; "labels" is missing where there are none. With `condition_column` there are "conditions", like
        "images".

    Raises:
        ValueError: a bad argument, a missing folder, split or column, an empty split, missing labels, or broken images
            (all are counted and the first ones named).
        ConnectionError: the Hub can't be reached.
    """
    check_arguments(dataset, resolution, channels)
    if dataset == "digits":
        if (image_column, label_column, condition_column) != (None, None, None):
            raise ValueError("'digits' has no columns to choose from; leave out image_column, label_column and such")
        records, labels, names = read_digits(split)
        return ImageDataset(
            records,
            name=dataset,
            resolution=resolution,
            channels=channels,
            labels=labels,
            class_names=names,
            in_memory=in_memory,
        )

    folder = local_folder(dataset)
    table = None if folder is None else read_folder(folder, split)
    if table is None:
        table = load_table(dataset if folder is None else str(folder), split)
    if len(table) == 0:
        raise ValueError(f"split {split!r} of {dataset!r} is empty; choose another split or add images to it")

    conditions = None
    form: dict[str, Any] = {"resolution": resolution, "channels": channels, "in_memory": in_memory}
    name = dataset if folder is None else folder.name
    if condition_column is not None:
        found = find_image_column(table, condition_column, "condition_column")
        conditions = ImageDataset(ImageColumn(table, found), name=f"{name}, column {found}", **form)
    column = find_image_column(table, image_column, besides=condition_column)
    class_labels, class_names = read_labels(table, label_column)
    return ImageDataset(
        ImageColumn(table, column),
        name=name,
        labels=class_labels,
        class_names=class_names,
        conditions=conditions,
        **form,
    )


def check_arguments(dataset: str, resolution: int, channels: int) -> None:
    """Raise ValueError where these can't be right for any dataset."""
    if not isinstance(dataset, str) or not dataset:
        raise ValueError(f"dataset is {dataset!r}; give 'digits', a folder or the id of a dataset")
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise ValueError(f"resolution is {resolution!r}; give a positive whole number of pixels")
    if resolution > MAX_RESOLUTION:
        raise ValueError(f"resolution is {resolution}; images are read with at most {MAX_RESOLUTION} pixels a side")
    if not isinstance(channels, int) or channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; choose 3 for RGB or 1 for gray")
