"""benchmarks/network_faults.py where network namespaces can't be made: skipped, with the reason."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "network_faults.py"


@pytest.mark.parametrize(
    ("missing", "reason"), [("tc", "there is no `tc`; install iproute2"), ("netns", "Operation not permitted")]
)
def test_the_reason_is_said(missing, reason, monkeypatch, capsys, tmp_path):
    module = runpy.run_path(str(SCRIPT))

    def run(command, **_):
        failed = missing in command
        return SimpleNamespace(returncode=int(failed), stderr="Operation not permitted\n")

    monkeypatch.setattr(module["subprocess"], "run", run)
    monkeypatch.setattr("sys.argv", ["network_faults.py", "--output-dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        module["main"]()
    assert ended.value.code == 77 and reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
