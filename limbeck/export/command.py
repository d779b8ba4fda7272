"""A finished run's student in a form for use elsewhere."""

from collections.abc import Callable
from pathlib import Path

from limbeck import loading
from limbeck.bridges import Images, Pipeline, Texts, write_lora, write_model, write_pipeline
from limbeck.commands import say
from limbeck.engine import Dataset
from limbeck.engine.checkpoint import new_folder, write_folder
from limbeck.engine.run import Session
from limbeck.errors import BadFile, Failed, Incompatible
from limbeck.export.onnx import to_onnx
from limbeck.problems.problem import Classification
from limbeck.students import FewStep


def export(folder: Path, out: Path, to: str = "safetensors") -> int:
    """Writes a run's student as safetensors or ONNX, with what it is, or as another library reads it."""
    session = loading.load_run(folder)
    if out.exists():
        raise BadFile(f"{out} exists; choose another --out.")
    description = (folder / "recipe.json").read_bytes()
    try:
        if to == "onnx":
            gap = _onnx(session, out, description)
            say(f"exported: {out}, within {gap:.1e} of the network in onnxruntime")
            return 0
        if to == "diffusers":
            how = _pipeline(session, out)
            say(f"exported: {out}, for DiffusionPipeline.from_pretrained, called with {how}")
            return 0
        if to == "lora":
            _pipeline(session, out, write_lora)
            say(f"exported: {out}, for load_lora_weights, with the scheduler that goes with it")
            return 0
        if to == "transformers":
            _model(session, out)
            say(f"exported: {out}, for from_pretrained of transformers")
            return 0
        write_folder(out, {"recipe.json": description}, state=session.student.state_dict())
    except Failed as error:
        raise BadFile(str(error)) from error
    say(f"exported: {out}")
    return 0


def _pipeline(session: Session, out: Path, write: Callable[..., None] = write_pipeline) -> str:
    """Writes a generator of few steps as a pipeline, or what is added to one; returns what that is called with."""
    problem, student = session.problem, session.student
    if not isinstance(problem, Pipeline) or not isinstance(student, FewStep):
        need, got = "a generator made on a pipeline's folder", f"a {type(student).__name__} on {problem.name}"
        raise Incompatible("export of a pipeline", need=need, got=got, fit="--to safetensors")
    write(student, out, like=problem.folder)
    return f"num_inference_steps={len(student.ratios)}" + ", guidance_scale=1" * problem.guidable


def _model(session: Session, out: Path) -> None:
    """Writes a model of transformers as a folder."""
    problem = session.problem
    if not isinstance(problem, Texts | Images):
        need, got = "a model made on the folder of one", f"a {type(session.student).__name__} on {problem.name}"
        raise Incompatible("export to transformers", need=need, got=got, fit="--to safetensors")
    write_model(session.student, out, like=problem.folder)


def _onnx(session: Session, out: Path, description: bytes) -> float:
    """Writes a classifier; returns how far the file's outputs are from its own."""
    problem = session.problem
    if not isinstance(problem, Classification):
        got = f"a {type(session.student).__name__} on {problem.name}"
        raise Incompatible("ONNX export", need="a run that made a classifier", got=got, fit="--to safetensors")
    with new_folder(out) as partial:
        (partial / "recipe.json").write_bytes(description)
        return to_onnx(session.student, Dataset(x=problem.heldout[0]), partial / "model.onnx")
