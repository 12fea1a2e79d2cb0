"""Command lines: the flags that scripts share, errors as one line, and outputs checked before the work."""

from .devices import default_device, refuse_several_processes
from .evaluation import add_evaluation_arguments, evaluation_settings
from .next_steps import PICTURE, REPOSITORY, after_pipeline, command_line, print_next
from .outputs import check_grid, check_output_folder, check_output_image
from .parser import (
    class_label,
    errors_as_lines,
    exit_on_sigterm,
    finite_number,
    local_path,
    new_parser,
    whole_number,
)
from .training import add_repository_options, parse_config, parse_run, train_command

__all__ = [
    "PICTURE",
    "REPOSITORY",
    "add_evaluation_arguments",
    "add_repository_options",
    "after_pipeline",
    "check_grid",
    "check_output_folder",
    "check_output_image",
    "class_label",
    "command_line",
    "default_device",
    "errors_as_lines",
    "evaluation_settings",
    "exit_on_sigterm",
    "finite_number",
    "local_path",
    "new_parser",
    "parse_config",
    "parse_run",
    "print_next",
    "refuse_several_processes",
    "train_command",
    "whole_number",
]
