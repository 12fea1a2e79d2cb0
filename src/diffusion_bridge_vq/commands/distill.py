"""
Train a student that draws in one to four steps, from trajectories (`--trajectories`) of its teacher (`--init-from`).

python examples/draw_trajectories.py checkpoints/digits --output-dir outputs/trajectories
python examples/distill.py --init-from checkpoints/digits --trajectories outputs/trajectories \
    --output-dir outputs/student
"""

from ..cli import train_command
from ..training import DistillConfig


def main() -> None:
    train_command(DistillConfig, __doc__)
