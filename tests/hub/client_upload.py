"""The test Hub takes uploads as the Hub does: huggingface_hub's own functions, with errors on the way."""

import pytest
import torch
from huggingface_hub import create_branch, create_repo, create_tag, file_exists, list_repo_files, upload_folder, whoami
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from server import TOKEN
from tiny_pipeline import make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQPipeline


@pytest.fixture(scope="module")
def pipe():
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(batch_size=2, generator=rng(5), num_inference_steps=3, output_type="pt").images


def test_round_trip(hub, cache, pipe, saved):
    assert whoami(token=TOKEN)["name"] == "tester"
    url = create_repo("tester/model", private=True, token=TOKEN)
    assert url.repo_id == "tester/model" and hub.repos["tester/model"].private
    with pytest.raises(HfHubHTTPError, match="409"):
        create_repo("tester/model", token=TOKEN)
    create_repo("tester/model", token=TOKEN, exist_ok=True)
    done = upload_folder(repo_id="tester/model", folder_path=saved, token=TOKEN)
    assert contents(saved).items() <= hub.files("tester/model").items()
    assert set(list_repo_files("tester/model", token=TOKEN)) == set(hub.files("tester/model"))
    loaded = DiffusionBridgeVQPipeline.from_pretrained("tester/model", token=TOKEN)
    assert torch.equal(draw(loaded), draw(pipe))

    create_tag("tester/model", tag="v1", token=TOKEN)
    create_branch("tester/model", branch="next", token=TOKEN)
    (saved / "note.txt").write_text("new")
    upload_folder(
        repo_id="tester/model", folder_path=saved, token=TOKEN, revision="next", delete_patterns="unet/*.json"
    )
    (saved / "note.txt").unlink()
    assert file_exists("tester/model", "note.txt", revision="next", token=TOKEN)
    assert not file_exists("tester/model", "note.txt", token=TOKEN)
    assert hub.repos["tester/model"].refs["v1"] == done.oid
    puts = [r for r in hub.log if r.method == "PUT"]
    assert len(puts) == 2  # the weights, once each


def test_without_a_token(hub, cache, saved):
    hub.add("tester/model")
    with pytest.raises(HfHubHTTPError, match="401"):
        create_repo("tester/other")
    with pytest.raises(RepositoryNotFoundError, match="401"):
        upload_folder(repo_id="tester/model", folder_path=saved, token="hf_wrong")
    with pytest.raises(RepositoryNotFoundError, match="404"):
        upload_folder(repo_id="tester/none", folder_path=saved, token=TOKEN)
    assert hub.files("tester/model") == {}


@pytest.mark.parametrize(
    ("path", "method", "fault"),
    [("/lfs/", "PUT", {"status": 500}), ("/lfs/", "PUT", {"cut": 1000}), ("objects/batch", "POST", {"status": 429})],
    ids=["upload 500", "upload cut", "batch 429"],
)
def test_upload_goes_on_after_an_error(hub, cache, saved, path, method, fault):
    hub.add("tester/model")
    hub.fail(method, path, **fault, headers={"Retry-After": "0"})
    upload_folder(repo_id="tester/model", folder_path=saved, token=TOKEN)
    assert hub.files("tester/model") == contents(saved) and not hub.faults


@pytest.mark.parametrize("status", [401, 403, 409, 412])
def test_refused_commit_changes_nothing(hub, cache, saved, status):
    hub.add("tester/model", {"README.md": b"old"})
    hub.fail("POST", "/commit/", status=status)
    with pytest.raises(HfHubHTTPError, match=str(status)):
        upload_folder(repo_id="tester/model", folder_path=saved, token=TOKEN)
    assert hub.files("tester/model") == {"README.md": b"old"}
    upload_folder(repo_id="tester/model", folder_path=saved, token=TOKEN)
    assert hub.files("tester/model") == {"README.md": b"old"} | contents(saved)
