"""What is taken for a local path, and which existing folder an error message suggests."""

import pytest

from diffusion_bridge_vq.data.paths import looks_local, suggest_path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with data/toys, data/horses, runs/a/pipeline/model_index.json and checkpoints/digits/..."""
    for folder in ("data/toys", "data/horses", "runs/a/pipeline", "runs/b/logs", "checkpoints/digits"):
        (tmp_path / folder).mkdir(parents=True)
    for pipeline in ("runs/a/pipeline", "checkpoints/digits"):
        (tmp_path / pipeline / "model_index.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "text", ["./x", "../x", "~/x", "/x/y", "x/y/z", "x/", "data", "data/typo", "x\\y", "~nobody/x", "x\0"]
)
def test_local_paths(here, text):
    assert looks_local(text)


@pytest.mark.parametrize("text", ["mnist", "user/name", "hf://datasets/data/typo", "s3://bucket/data"])
def test_ids_of_the_hub(here, text):
    assert not looks_local(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/toyz", "Did you mean 'data/toys'?"),
        ("dta/toys", "Did you mean 'data/toys'?"),
        ("Data/Horse", "Did you mean 'data/horses'?"),
        ("./data/typo-of-nothing", "There are 'data/horses', 'data/toys'."),
        ("horses", "Did you mean 'data/horses'?"),
        ("data/toys/deeper", ""),
        ("user/name", ""),
        ("x" * 5000, ""),
        ("data\0", "Did you mean 'data'?"),
    ],
)
def test_the_nearest_folder(here, text, expected):
    assert suggest_path(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/a", "There is 'runs/a/pipeline'."),
        ("runs/doesnotexist", "There is 'runs/a/pipeline'."),
        ("runs/b", ""),
        ("checkpoint/digit", "Did you mean 'checkpoints/digits'?"),
        ("digits", "Did you mean 'checkpoints/digits'?"),
    ],
)
def test_the_nearest_folder_that_contains_a_file(here, text, expected):
    assert suggest_path(text, containing="model_index.json") == expected


def test_an_absolute_path_is_suggested_for_one(here, monkeypatch):
    assert suggest_path(here / "data" / "toyz") == f"Did you mean {str(here / 'data' / 'toys')!r}?"
    monkeypatch.setenv("HOME", str(here))
    assert suggest_path("~/data/toyz") == f"Did you mean {str(here / 'data' / 'toys')!r}?"


def test_many_folders_are_counted(here):
    for number in range(9):
        (here / "data" / f"{number}").mkdir()
    text = suggest_path("data/quite-different")
    assert text == "There are 'data/0', 'data/1', 'data/2', 'data/3', 'data/4' and 6 more."


def test_a_circle_of_links_is_no_folder(here):
    (here / "data" / "toyz").symlink_to(here / "data" / "toyz")
    assert suggest_path("data/toyz") == "Did you mean 'data/toys'?"
