"""Streams on two and three processes: each reads its own share, without loss or repetition, and resumes exactly."""

import io
import json
from collections import Counter

import datasets
import pytest
import stream_work
from PIL import Image
from warm_processes import launch

pytestmark = pytest.mark.slow
SIZES = (17, 40, 5)  # in row groups of at most 6: 62 images, which two and three processes divide with a rest
BATCH = 4


def png(value):
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gray")
    start = 0
    for number, size in enumerate(SIZES):
        rows = [{"bytes": png(value), "path": None} for value in range(start, start + size)]
        table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
        table.to_parquet(folder / f"train-{number}.parquet", batch_size=6)
        start += size
    return folder


def read(processes, folder, output, skip=0):
    output.mkdir()
    launch(output, stream_work.read, folder, output, skip, processes=processes)
    return [json.loads((output / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("processes", [2, 3])
def test_each_process_reads_its_share(processes, folder, tmp_path):
    found = read(processes, folder, tmp_path / "whole")
    share = sum(SIZES) // processes
    for epoch in range(2):
        batches = [result["epochs"][epoch] for result in found]
        assert {len(own) for own in batches} == {share // BATCH}  # as many on each: none waits for another
        seen = Counter(value for own in batches for batch in own for value in batch)
        assert max(seen.values()) == 1 and len(seen) == share // BATCH * BATCH * processes
    assert found[0]["epochs"][0] != found[0]["epochs"][1]
    for result in found:  # and its share of the work
        assert result["decoded"] <= 2 * share
    resumed = read(processes, folder, tmp_path / "resumed", skip=2)
    for whole, rest in zip(found, resumed, strict=True):
        assert rest["epochs"] == [whole["epochs"][0][2:], whole["epochs"][1]]
