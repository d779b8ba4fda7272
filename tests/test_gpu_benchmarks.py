"""The benchmark for GPUs runs, on small networks on the processor; the large ones have the sizes that they say."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.evaluate.memory import peak

pytest.importorskip("diffusers")

FOLDER = Path(__file__).parent.parent / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """benchmarks/gpu/dmd2.py as a module; its helpers lie beside it."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("dmd2")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("dmd2", "memory", "_measure", "_models"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_unets_take_a_step(script: Any, name: str) -> None:
    run = script.start(script.tiny(name), "cpu", 2, 2)
    run.i = script.CYCLE - 1  # everyone is due
    assert set(run.tick().norms) == {"student", "critic", "discriminator"}


def test_it_measures(script: Any) -> None:
    """In a process of its own, for the memory is that of all tensors that live."""
    given = ["dit2b", "--tiny", "--seconds", "0", "--batch", "2", "--tflops", "1"]
    done = subprocess.run([sys.executable, script.__file__, *given], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ticks"] == script.CYCLE and found["seconds"] > 0
    assert found["memory"] == pytest.approx(found["planned"], rel=0.1)
    assert found["utilisation"] == pytest.approx(found["operations"] / found["seconds"] / 1e12, rel=0.01)
    assert "seconds per iteration" in done.stdout and "model FLOP utilisation" in done.stdout


@pytest.mark.parametrize(
    ("name", "parameters"), [("sd15", 859_520_964), ("sdxl", 2_567_463_684), ("dit2b", 2_028_328_000)]
)
def test_sizes_are_real(script: Any, name: str, parameters: int) -> None:
    teacher = script.MODELS[name].build("meta", torch.bfloat16)
    assert sum(p.numel() for p in teacher.parameters()) == pytest.approx(parameters, rel=1e-3)


def test_without_a_device_it_says_what_to_do(
    script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        script.main(["sd15"])
    assert "--plan" in capsys.readouterr().err


def test_what_is_needed_beside_fine_tuning(script: Any) -> None:
    memory = importlib.import_module("memory")

    def needed(row: str) -> int:
        run = memory.begun("sdxl", row, 2, "cpu", small=True)
        run.i = script.CYCLE - 1  # everyone is due
        return peak(run.tick, run.cast.tensors())

    base = needed("fine-tuning")
    assert base < needed("dmd2, one base") < 2 * base < needed("dmd2, three networks")
