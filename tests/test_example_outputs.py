"""What the scripts of examples/ refuse before any work: outputs, options that do nothing, several processes."""

import pytest


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("noext", "needs the ending of a picture, such as noext.png"),
        ("out.txt", "needs the ending of a picture, such as out.png"),
        ("folder", "is a folder: give the name of a picture in it"),
        ("file/out.png", "file is a file"),
        ("file/deeper/out.png", "file is a file"),
        ("a" * 300 + "/out.png", "File name too long"),
        ("a" * 300 + ".png", "File name too long"),
        ("out.xbm", "out.xbm can't be written as XBM (cannot write mode RGB as XBM): take out.png"),
        ("out.hdf", "out.hdf can't be written as HDF5 (HDF5 save handler not installed): take out.png"),
    ],
)
def test_a_picture_that_cannot_be_written(fails, nothing_is_loaded, output, words, tmp_path):
    """`--output noext` drew all images and lost them."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert words in fails("sample.py", tmp_path, "--output", tmp_path / output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("inpaint.py", ["PIPELINE"]),
        ("evaluate.py", ["kl", "--model", "it=PIPELINE"]),
        ("reproduce.py", ["--dataset", "digits"]),
        ("export_onnx.py", ["PIPELINE"]),
        ("export_checkpoint.py", ["CHECKPOINT"]),
        ("draw_trajectories.py", ["PIPELINE"]),
        ("encode_dataset.py", ["--vqvae-from", "AUTOENCODER", "--dataset", "digits"]),
        ("toy_bridge.py", []),
        ("../benchmarks/study_steps.py", ["PIPELINE"]),
        ("../benchmarks/benchmark.py", ["--output"]),
    ],
)
@pytest.mark.parametrize("output", ["file", "file/deeper"])
def test_a_folder_that_cannot_be_written(fails, nothing_is_loaded, script, arguments, output, tmp_path):
    (tmp_path / "file").touch()
    option = arguments if "--output" in arguments else [*arguments, "--output-dir"]
    name = "/figures.json" if "--output" in arguments else ""
    assert "file is a file" in fails(script, *option, f"{tmp_path / output}{name}")


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        (
            "sample.py",
            ["P", "--output", "o.png", "--output-dir", "out"],
            "--output and --output-dir exclude each other",
        ),
        ("sample.py", ["P", "--all-classes", "--class-labels", 0], "--all-classes and --class-labels exclude each"),
        ("sample.py", ["P", "--npz"], "--npz goes with --output-dir"),
        ("sample.py", ["P", "--chain-steps", 2, "--output-dir", "out"], "--chain-steps goes without --output-dir"),
        ("inpaint.py", ["P", "--jump-n-sample", 1, "--jump-length", 10], "--jump-length goes with a --jump-n-sample"),
        ("encode_dataset.py", ["--what", "codes", "--precision", "float16"], "--precision goes with latents"),
        ("encode_dataset.py", ["--dataset-name", "photos"], "--dataset-name goes with --push-to-hub"),
        ("export_checkpoint.py", ["C", "--init-from", "a", "--vqvae-from", "b"], "--vqvae-from exclude each other"),
    ],
)
def test_options_that_do_nothing(fails, nothing_is_loaded, script, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    required = {"encode_dataset.py": ["--vqvae-from", "vq", "--dataset", "digits", "--output-dir", "out"]}
    required["export_checkpoint.py"] = ["--output-dir", "out"]
    assert words in fails(script, *arguments, *required.get(script, []))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("sample.py", ["P"], "give --output-dir for files, or start it without `accelerate launch`"),
        ("inpaint.py", ["P"], ""),
        ("fit_timesteps.py", ["P"], ""),
        ("export_checkpoint.py", ["C", "--output-dir", "out"], ""),
        ("export_onnx.py", ["P"], ""),
        ("push_to_hub.py", ["P", "user/model"], ""),
        ("reproduce.py", ["--dataset", "digits"], ""),
    ],
)
def test_commands_for_one_process(fails, nothing_is_loaded, script, arguments, words, tmp_path, monkeypatch):
    """Each process did everything, and wrote the same files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("diffusion_bridge_vq.comparison.Comparison.check_data", lambda *_: pytest.fail("it began"))
    line = fails(script, *arguments)
    assert "this is for one process, and 2 were launched: " in line and line.endswith(words or "`accelerate launch`")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_permission(fails, nothing_is_loaded):
    """Nobody writes into /proc, not even root."""
    assert "Nothing can be written to" in fails("sample.py", "PIPELINE", "--output", "/proc/out.png")


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("sample.py", ["~nobody-here/x"]),
        ("sample.py", ["PIPELINE", "--output", "~nobody-here/x.png"]),
        ("evaluate.py", ["fid", "--model", "it=~nobody-here/x", "--output-dir", "OUT"]),
        ("inpaint.py", ["PIPELINE", "--output-dir", "~nobody-here/x"]),
        ("train_vqvae.py", ["--output-dir", "~nobody-here/x"]),
        ("train_prior.py", ["--vqvae-from", "~nobody-here/x"]),
        ("push_to_hub.py", ["~nobody-here/x", "user/model"]),
    ],
)
def test_the_home_of_somebody_who_is_not_there(fails, script, arguments, tmp_path, monkeypatch):
    """It was a traceback of pathlib. Nothing is made, least of all a folder named ~nobody-here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert "begins with the home folder of 'nobody-here', a user that isn't known here" in fails(script, *arguments)
    assert {path.name for path in tmp_path.iterdir()} <= {"OUT"}
