"""Streams on two and three processes: each reads its own share, without loss or repetition, and resumes exactly."""

import io
import json
import tarfile
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
def datasets_of(tmp_path_factory, hub_server):
    """The same images in parquet files and in tar shards, here and on a Hub."""
    found = {kind: tmp_path_factory.mktemp(kind) for kind in ("parquet", "tar")}
    start = 0
    for number, size in enumerate(SIZES):
        files = [png(value) for value in range(start, start + size)]
        rows = [{"bytes": file, "path": None} for file in files]
        table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
        table.to_parquet(found["parquet"] / f"train-{number}.parquet", batch_size=6)
        with tarfile.open(found["tar"] / f"train-{number}.tar", "w") as archive:
            for value, file in enumerate(files):
                member = tarfile.TarInfo(f"{value:04}.png")
                member.size = len(file)
                archive.addfile(member, io.BytesIO(file))
        start += size
    hub_server.add("user/streamed", found["tar"])
    return found | {"hub": "user/streamed"}


def read(processes, dataset, output, skip=0):
    output.mkdir()
    launch(output, stream_work.read, dataset, output, skip, processes=processes)
    return [json.loads((output / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize(("processes", "kind"), [(2, "parquet"), (3, "parquet"), (2, "tar"), (2, "hub")])
def test_each_process_reads_its_share(processes, kind, datasets_of, tmp_path, capfd):
    found = read(processes, datasets_of[kind], tmp_path / "whole")
    share = sum(SIZES) // processes
    for epoch in range(2):
        batches = [result["epochs"][epoch] for result in found]
        assert {len(own) for own in batches} == {share // BATCH}  # as many on each: none waits for another
        seen = Counter(value for own in batches for batch in own for value in batch)
        assert max(seen.values()) == 1 and len(seen) == share // BATCH * BATCH * processes
    assert found[0]["epochs"][0] != found[0]["epochs"][1]
    if processes == 3:  # for which 14 row groups are enough
        assert "files or row groups for" not in capfd.readouterr().out
    for result in found:  # and its share of the work
        assert result["decoded"] <= 2 * share
    resumed = read(processes, datasets_of[kind], tmp_path / "resumed", skip=2)
    for whole, rest in zip(found, resumed, strict=True):
        assert rest["epochs"] == [whole["epochs"][0][2:], whole["epochs"][1]]
