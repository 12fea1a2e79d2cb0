"""Uploads while a run trains."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging

from ..model_card import read_run
from .push import PushOptions, commit_files, open_repository, push_run, run_files

logger = logging.get_logger(__name__)


@contextmanager
def upload_while_training(
    folder: str | Path, options: PushOptions | None, *, token: str | None = None, every: float = 300.0
) -> Iterator[None]:
    """
    While it is entered, what a run writes (grids, metrics, settings, evaluation) goes to the Hub in the background;
    on normal exit, all of it with the pipeline, as in [`push_run`].

    The run never waits for the Hub and never fails because of it: what goes wrong is a warning, and the next upload
    brings what is missing. On processes other than the first it does nothing. `huggingface_hub.CommitScheduler` would
    stop a run that starts without a connection, and uploads files as they are, with this machine's paths.

    Args:
        folder (`str` or `Path`): of the run.
        options ([`PushOptions`], *optional*): without them nothing is uploaded.
        token (`str`, *optional*): as in [`push_run`].
        every (`float`, *optional*, defaults to 300.0): seconds between uploads.

    Raises:
        PermissionError: when it is entered, if the Hub says that the token may not write there.
        ValueError: then, too, a name that the Hub doesn't take.
    """
    if options is None or int(os.environ.get("RANK", "0")):
        yield
        return
    try:
        open_repository(options, token)
    except PermissionError:
        raise
    except OSError as error:
        logger.warning(f"{error} Training starts all the same.")
    over = threading.Event()

    def upload_now_and_then() -> None:
        while not over.wait(every):
            try:
                files = run_files(read_run(folder)) if Path(folder).is_dir() else {}
                if files:
                    commit_files(files, options.repo_id, token, not options.public, "Training goes on")
            except Exception as error:
                logger.warning(f"Upload to {options.repo_id} failed, the next one comes in {every:.0f} s: {error}")

    # a daemon: a run that is stopped by a signal or an error doesn't wait for it
    thread = threading.Thread(target=upload_now_and_then, name="upload to the Hub", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
    thread.join()  # commits follow one another
    try:
        address = push_run(folder, options.repo_id, token=token, private=not options.public, license=options.license)
    except Exception as error:
        logger.warning(
            f"{error}\nThe run is whole in {folder}; `python examples/push_to_hub.py {folder} {options.repo_id}` "
            "uploads it."
        )
    else:
        print(f"Pushed: {address}")
