"""A model of transformers in a folder is distilled, judged and exported: the library itself says what is right."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import KD, UNLABELLED, Adam, Cosine, CrossEntropy, FitNets, MiniLM, Objective, PerToken, distill
from limbeck.bridges import Images, Smaller, Texts, read_model
from limbeck.bridges.smaller import layers_of
from limbeck.cli import main
from limbeck.engine import Drawn, Source
from limbeck.errors import BadSetting, Incompatible
from limbeck.evaluate.language import judge_language
from limbeck.evaluate.models import figures_of
from limbeck.loading import load_problem, load_recipe, load_run
from limbeck.problems.digits import split
from limbeck.recipes.adapting import per_token
from limbeck.rng import Rng
from limbeck.tree import rows
from tests.tiny_models import WORDS, model, same, saved, sentences, texts, tokenizer

transformers = pytest.importorskip("transformers")

LANGUAGE = ("gpt2", "llama", "bert")
KINDS = (*LANGUAGE, "vit")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind, and data for them: texts of several lengths, and digits."""
    home = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        saved(model(kind), home / kind, words=None if kind == "vit" else WORDS)
    lines = [" ".join(line.split()[: 3 + i % 8]) for i, line in enumerate(sentences(60))]
    (home / "texts.txt").write_text("\n".join(lines) + "\n\n")
    x, y, *_ = split()
    save_file({"x": x[:300].contiguous(), "y": y[:300].contiguous()}, home / "data.safetensors")
    return home


def on(home: Path, kind: str) -> Any:
    """The problem."""
    return load_problem(str(home / kind), {"data": data(home, kind)})


def data(home: Path, kind: str) -> str:
    """What it is made on."""
    return str(home / ("data.safetensors" if kind == "vit" else "texts.txt"))


def first(x: Any, y: Tensor) -> Source:
    """Always the first examples."""
    return Drawn(lambda n, rng: {"x": rows(x, slice(n)), "y": y[:n]}, fields=("x", "y"))


def asked(net: nn.Module, x: Any) -> Tensor:
    """Logits of images, or of texts."""
    with torch.no_grad():
        return (net(**x) if isinstance(x, dict) else net(x)).logits


# losses


@pytest.mark.parametrize("kind", LANGUAGE)
def test_cross_entropy_is_that_of_the_library(home: Path, kind: str) -> None:
    """The mean over a text's tokens as the model itself has it, shift and all; texts count alike, however long."""
    x, y = on(home, kind).train
    net, wanted = model(kind), list[float]()
    for ids, there, labels in zip(x["input_ids"][:7], x["attention_mask"][:7].bool(), y[:7], strict=True):
        given = labels[there] if kind == "bert" else ids[there]
        wanted.append(net(input_ids=ids[there][None], labels=given[None]).loss.item())
    assert len({int(n) for n in x["attention_mask"][:7].sum(1)}) > 4
    run = distill(None, net, PerToken(of=CrossEntropy()), first(x, y), steps=1, batch=7)
    assert next(iter(run)).losses["cross_entropy of tokens"] == pytest.approx(sum(wanted) / 7, rel=1e-5)


def test_kd_token_by_token(home: Path) -> None:
    """KL at temperature T of every token with a label, by torch's own formula, and cross-entropy beside it."""
    x, y = on(home, "gpt2").train
    student, teacher, (T, a) = model("gpt2", layers=1), model("gpt2"), (3.0, 0.7)
    s, t = asked(student, rows(x, slice(5))), asked(teacher, rows(x, slice(5)))
    wanted = 0.0
    for i in range(5):
        tokens = [j for j in range(y.shape[1]) if y[i, j] != UNLABELLED]
        for j in tokens:
            kl = F.kl_div((s[i, j] / T).log_softmax(0), (t[i, j] / T).softmax(0), reduction="sum")
            wanted += (a * T**2 * kl + (1 - a) * F.cross_entropy(s[i, j], y[i, j])).item() / len(tokens) / 5
    run = distill(teacher, student, PerToken(of=KD(temperature=T, alpha=a)), first(x, y), steps=1, batch=5)
    assert next(iter(run)).losses["kd of tokens"] == pytest.approx(wanted, rel=1e-5)


def test_features_of_tokens_are_pairs(home: Path) -> None:
    """Hidden states of a layer and of another, as the library has them, with a projector between their widths."""
    problem = on(home, "gpt2")
    student = model("gpt2", layers=1, width=16).requires_grad_(True)
    objective = per_token(KD(alpha=1.0) + 10 * FitNets(pairs={"transformer.h.0": "transformer.h.1"}))
    run = distill(problem.teacher, student, objective, first(*problem.train), steps=40, batch=16, optim=Adam(lr=3e-3))
    losses = [step.losses["fitnets"] for step in run]
    (projector,) = (role.module for name, role in run.cast.roles.items() if "projector" in name)
    x = rows(problem.train[0], slice(16))
    with torch.no_grad():
        ours = student(**x, output_hidden_states=True).hidden_states
        theirs = problem.teacher(**x, output_hidden_states=True).hidden_states[2]
        with_tap = run.cast.dry("student").features["transformer.h.0"]
        assert projector[0](with_tap).shape[1:] == (with_tap.shape[1], 32)
    assert len(ours) == 2 and theirs.shape == (*x["input_ids"].shape, 32)
    assert losses[-1] < 0.8 * losses[0]


# data


def test_what_is_guessed_by_a_masked_model(home: Path) -> None:
    """Three in twenty tokens, one in every line at least, by the tick's random numbers; most of them are hidden."""
    problem = on(home, "bert")
    batch = problem.source.take(4000, Rng(5))
    seen, there, y = batch["x"]["input_ids"], batch["x"]["attention_mask"].bool(), batch["y"]
    chosen = y != UNLABELLED
    assert bool((chosen <= there).all()) and bool(chosen.any(1).all())
    long = there.sum(1) == 10  # where one at least is rarely more than there would be
    assert chosen[long].sum() / there[long].sum() == pytest.approx(0.15 + 0.85**10 / 10, abs=0.01)
    shares = [(seen == 2)[chosen], (seen == y)[chosen], ((seen != 2) & (seen != y))[chosen]]
    one_in = problem.classes
    wanted = (0.8 + 0.1 / one_in, 0.1 + 0.1 / one_in, 0.1 * (1 - 2 / one_in))
    assert [share.float().mean().item() for share in shares] == pytest.approx(wanted, abs=0.02)
    again, other = (problem.source.take(4000, Rng(seed)) for seed in (5, 6))
    assert torch.equal(again["y"], y) and not torch.equal(other["y"][:, :5], y[:, :5])
    part = problem.source.take(9, Rng(5, part=slice(9, 18), total=4000))["y"]
    assert torch.equal(part, y[9:18, : part.shape[1]])


def test_held_out_texts_are_in_no_batch(home: Path, tmp_path: Path) -> None:
    """Not even those that are in the file twice."""
    (tmp_path / "twice.txt").write_text((home / "texts.txt").read_text() * 2)
    problem = Texts(home / "gpt2", tmp_path / "twice.txt")
    train, heldout = ({tuple(row.tolist()) for row in x["input_ids"]} for x, _ in (problem.train, problem.heldout))
    shorter = {tuple(t for t in row if t != 0) for row in train}
    assert heldout and not {tuple(t for t in row if t != 0) for row in heldout} & shorter
    ids = problem.tokenizer(problem.data.read_text().split("\n")[0])["input_ids"]
    assert (*ids, problem.tokenizer.eos_token_id) in shorter | heldout  # ends are learned as well


@pytest.mark.parametrize("mean", [None, 0.25])
def test_pictures_are_what_the_model_takes(home: Path, tmp_path: Path, mean: float | None) -> None:
    """PNGs in class folders are numbers from −1 to 1, or what the model's own processor says."""
    image = pytest.importorskip("PIL.Image")
    shutil.copytree(home / "vit", tmp_path / "vit")
    if mean is not None:
        size = {"height": 8, "width": 8}
        transformers.ViTImageProcessorPil(size=size, image_mean=[mean], image_std=[0.5]).save_pretrained(
            tmp_path / "vit"
        )
    x, y, *_ = split()
    grey = ((x[:40, 0] / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    for i in range(40):
        (tmp_path / "images" / f"c{int(y[i])}").mkdir(parents=True, exist_ok=True)
        image.fromarray(grey[i].numpy()).save(tmp_path / "images" / f"c{int(y[i])}" / f"{i:02d}.png")
    problem = Images(tmp_path / "vit", tmp_path / "images")
    both = zip(*(torch.cat(pair) for pair in zip(problem.train, problem.heldout, strict=True)), strict=True)
    back = {(label.item(), *_grey(one, mean or 0.5).flatten().tolist()) for one, label in both}
    assert back == {(label.item(), *one.flatten().tolist()) for one, label in zip(grey, y[:40], strict=True)}


def _grey(x: Tensor, mean: float) -> Tensor:
    return ((x * 0.5 + mean) * 255).round().long()


# students


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_layers_are_the_teachers(home: Path, kind: str) -> None:
    """The student says what the teacher says with the other layers taken out."""
    problem = on(home, kind)
    student = Smaller(layers=2)(problem)
    cut: Any = copy.deepcopy(problem.teacher)
    stack, n = layers_of(cut)
    path, _, leaf = stack.rpartition(".")
    layers = cut.get_submodule(stack)
    setattr(cut.get_submodule(path), leaf, nn.ModuleList([layers[0], layers[2]]))
    cut.config.num_hidden_layers = 2
    x = rows(problem.heldout[0], slice(4))
    assert n == 3 and torch.equal(asked(student.eval(), x), asked(cut.eval(), x))
    assert all(p.requires_grad for p in student.parameters())
    assert sum(p.numel() for p in Smaller(hidden=16)(problem).parameters()) < 0.6 * sum(
        p.numel() for p in problem.teacher.parameters()
    )


def test_student_of_another_folder(home: Path, tmp_path: Path) -> None:
    """It starts with what is there, if its tokens are the teacher's."""
    own = saved(model("gpt2", layers=1, width=16), tmp_path / "own")
    student = Smaller(folder=str(own))(on(home, "gpt2"))
    assert same(student, model("gpt2", layers=1, width=16)) and all(p.requires_grad for p in student.parameters())


def test_layers_are_those_of_distilbert() -> None:
    """Six of twelve, as the script has them by which it was made; and tied embeddings stay tied."""
    teacher = model("gpt2", layers=12, width=4)
    student: Any = Smaller().of(teacher)
    for i, j in enumerate((0, 2, 4, 7, 9, 11)):
        one, other = (net.transformer.h[k].mlp.c_fc.weight for net, k in ((student, i), (teacher, j)))
        assert torch.equal(one, other)
    assert student.lm_head.weight is student.transformer.wte.weight


@pytest.fixture(scope="module")
def taught(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Texts, Texts]:
    """A GPT-2 that knows the grammar: on all it was taught, and on thirty texts, judged by the same."""
    where = tmp_path_factory.mktemp("taught")
    texts(where / "many.txt", 2000)
    (where / "few.txt").write_text("\n".join(sentences(30, seed=7)))
    many = Texts(saved(model("gpt2", layers=2), where / "blank"), where / "many.txt")
    net = many.teacher.requires_grad_(True)
    learns = {"steps": 300, "batch": 32, "optim": Adam(lr=3e-3, schedule=Cosine(warmup=0.05))}
    distill(None, net, PerToken(of=CrossEntropy()), many.source, **learns).finish()
    few = Texts(saved(net, where / "model"), where / "few.txt")
    few.heldout = many.heldout
    return many, few


def test_student_learns_more_from_the_teacher_than_from_texts(taught: tuple[Texts, Texts]) -> None:
    """On thirty texts, with one layer of two: the KL to the teacher is 0.003 to 0.005 of that, on ten seeds."""
    _, few = taught
    assert judge_language(few.teacher, few)["nll"] < 0.65  # all words alike would have 2.9
    optim = Adam(lr=3e-3, schedule=Cosine(warmup=0.05))
    for seed in range(3):
        figures = list[dict[str, float]]()
        for of in (KD(alpha=1.0, temperature=2.0), CrossEntropy()):
            learns = {"steps": 80, "batch": 16, "optim": optim, "seed": seed}
            run = distill(few.teacher, Smaller(layers=1)(few), PerToken(of=of), few.source, **learns)  # type: ignore[arg-type]
            figures.append(judge_language(run.finish(), few))
        kd, labels = figures
        assert kd["kl"] < 0.1 * labels["kl"] and kd["nll"] < labels["nll"] and kd["agreement"] > labels["agreement"]


def test_figures(taught: tuple[Texts, Texts]) -> None:
    """Against the library's own loss, at once and not in parts."""
    many, _ = taught
    x, _ = many.heldout
    labels = x["input_ids"].masked_fill(x["attention_mask"] == 0, -100)
    with torch.no_grad():
        loss = many.teacher(**x, labels=labels).loss.item()
    student = Smaller(layers=1)(many)
    figures = figures_of(student, many)
    p, q = (asked(net, x)[many.heldout[1] >= 0].log_softmax(-1) for net in (many.teacher, student))
    assert figures["kl"] == pytest.approx(F.kl_div(q, p, reduction="batchmean", log_target=True).item(), rel=1e-4)
    assert figures["nll_teacher"] == pytest.approx(loss, rel=1e-5)
    assert figures["perplexity_teacher"] == pytest.approx(2.718281828**loss, rel=1e-4)
    assert (figures["agreement_teacher"], figures["kl_teacher"]) == (1.0, 0.0)
    assert figures["parameters"] < figures["parameters_teacher"]
    assert figures["accuracy_teacher"] == pytest.approx(many.accuracy(many.teacher))


# the command line


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


AUTO = {"bert": "AutoModelForMaskedLM", "vit": "AutoModelForImageClassification"}


@pytest.mark.parametrize("kind", KINDS)
def test_from_folder_to_folder(home: Path, work: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """distill, evaluate, export, and the library loads what came of it: the same logits, tokenizer beside it."""
    line = ["--on", str(home / kind), "--data", data(home, kind), "--steps", "4", "--student.layers", "2"]
    assert main(["distill", "kd", *line, "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"nll", "accuracy", "agreement", "parameters_teacher"} <= figures.keys()
    assert figures.keys() == json.loads(Path("run/result.json").read_text()).keys()
    assert main(["export", "run", "--to", "transformers", "--out", "out"]) == 0
    loaded = getattr(transformers, AUTO.get(kind, "AutoModelForCausalLM")).from_pretrained("out").eval()
    session = load_run(Path("run"))
    x = rows(session.problem.heldout[0], slice(4))
    torch.testing.assert_close(asked(loaded, x), asked(session.student.eval(), x), rtol=0, atol=1e-5)
    theirs, ours = (json.loads(Path(at, "config.json").read_text()) for at in (home / kind, "out"))
    changed = {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)}
    assert changed <= {"n_layer", "num_hidden_layers"}
    if kind in ("gpt2", "llama"):
        say = transformers.pipeline("text-generation", model="out", device="cpu")
        assert len(say("the small", max_new_tokens=3, do_sample=False)[0]["generated_text"].split()) > 2
    elif kind == "bert":
        assert len(transformers.pipeline("fill-mask", model="out", device="cpu")("the <mask> cat")) == 5


def test_resumed_without_being_told_the_data_again(home: Path, work: Path) -> None:
    """It is in recipe.json; other data are refused."""
    run = ["distill", "kd", "--on", str(home / "bert"), "--out", "run", "--resume"]
    assert main([*run, "--data", data(home, "bert"), "--steps", "2"]) == 0
    assert main(run) == 0
    assert main(["distill", "run/recipe.json", "--out", "again"]) == 0
    one, two = (load_run(Path(name)).student.state_dict() for name in ("run", "again"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    texts(Path("other.txt"), 20)
    assert main([*run, "--data", "other.txt"]) == 2


@pytest.mark.parametrize("system", ["kd", "sinkd", "luminet-kd", "pld"])
def test_recipes_of_logits_fit(home: Path, system: str) -> None:
    """Those for classifiers are taken token by token, and may be set as usual."""
    problem = on(home, "gpt2")
    recipe = load_recipe(system, problem, {"steps": "2", "batch": "6", "student.layers": "1"})
    (stage,) = recipe.stages
    assert stage.student == Smaller(layers=1)  # type: ignore[union-attr]
    assert all(step.losses for step in stage.start(problem, None, 0))  # type: ignore[union-attr, arg-type]


def test_mixed_precision_on_disk(tmp_path: Path) -> None:
    """What is stored in bfloat16 is read and trained in float32, to the same values."""
    net: Any = model("llama").to(torch.bfloat16)
    net.save_pretrained(tmp_path / "half")
    read = read_model(tmp_path / "half")
    assert all(p.dtype == torch.float32 for p in read.parameters())
    assert all(torch.equal(p, q.float()) for p, q in zip(read.parameters(), net.parameters(), strict=True))


# wrong input


def _pickled(at: Path) -> None:
    for path in at.glob("*.safetensors"):
        path.unlink()
    torch.save({}, at / "pytorch_model.bin")


def _other_class(at: Path) -> None:
    config = json.loads((at / "config.json").read_text())
    (at / "config.json").write_text(json.dumps({**config, "architectures": ["T5ForConditionalGeneration"]}))


def _cut(at: Path) -> None:
    (at / "model.safetensors").write_bytes((at / "model.safetensors").read_bytes()[:500])


def _wordless(at: Path) -> None:
    for path in at.glob("tokenizer*"):
        path.unlink()


def _other_words(at: Path) -> None:
    tokenizer((*WORDS, *"abcdefg")).save_pretrained(at)


def _deep(at: Path, layers: int) -> None:
    config = json.loads((at / "config.json").read_text())
    (at / "config.json").write_text(json.dumps({**config, "n_layer": layers}))


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no model": (lambda at: (at / "config.json").unlink(), "neither model_index.json nor config.json"),
    "no json": (lambda at: (at / "config.json").write_text("{"), "no config.json that can be read"),
    "pickled": (_pickled, "pytorch_model.bin, which are not read"),
    "another class": (_other_class, "T5ForConditionalGeneration"),
    "damaged": (_cut, "is not a whole model"),
    "too few weights": (lambda at: _deep(at, 4), "missing keys, transformer.h.3"),
    "too many weights": (lambda at: _deep(at, 2), "weights of more layers than its config.json says: transformer.h.2"),
    "no tokenizer": (_wordless, "has no tokenizer"),
    "another tokenizer": (_other_words, "a tokenizer for its vocabulary of 18, got one with a token of number"),
}

DATA = {
    "none": (None, "needs --data"),
    "missing": ("", "cannot be read|can be read"),
    "empty": ("\n \n", "must have two different lines of text or more, got 0"),
    "one line": ("the cat\n", "got 1"),
    "too long": ("the cat\n" + "the " * 40 + "\n", "lines of at most 32 tokens, got one of 41"),
}


@pytest.mark.parametrize("wrong", FOLDERS)
def test_wrong_folders(home: Path, work: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home / "gpt2", "model")
    Path("texts.txt").write_text("a b c\nthe cat d e\nf g the\n")
    FOLDERS[wrong][0](Path("model"))
    refused(["--on", "./model", "--data", "texts.txt"], FOLDERS[wrong][1], capsys)


@pytest.mark.parametrize("wrong", DATA)
def test_wrong_data(home: Path, work: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, said = DATA[wrong]
    if text:
        Path("texts.txt").write_text(text, encoding="utf-8")
    refused(["--on", str(home / "gpt2"), *(() if text is None else ("--data", "texts.txt"))], said, capsys)


def test_words_that_are_unknown(home: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A masked model has nothing to guess there."""
    Path("texts.txt").write_text("zyx\nxyz\n")
    refused(["--on", str(home / "bert"), "--data", "texts.txt"], "something to guess", capsys)


SETTINGS = {
    "--student.layers 4": "layers must be at most the teacher's 3, got 4",
    "--student.layers 0": "layers must be at least 1",
    "--student.hidden 15": "multiple of the teacher's 2 heads",
    "--student.folder {home}/bert": "a model of the teacher's kind",
    "--student.folder other": "needs the teacher's vocabulary of 18 tokens, got another one of 25",
    "--student.folder nowhere": "nowhere",
}


@pytest.mark.parametrize("line", SETTINGS)
def test_wrong_students(home: Path, work: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "other" in line:
        saved(model("gpt2", vocab=25), Path("other"), words=(*WORDS, *"abcdefg"))
    settings = line.format(home=home).split()
    refused(["--on", str(home / "gpt2"), "--data", data(home, "gpt2"), *settings], SETTINGS[line], capsys)


@pytest.mark.parametrize("system", ["dmd2", "rkd", "msdcrd"])
def test_recipes_that_do_not_fit(home: Path, work: Path, system: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"dmd2": "needs a Generative problem", "rkd": "there is no system", "msdcrd": "needs"}[system]
    refused(["--on", str(home / "gpt2"), "--data", data(home, "gpt2")], said, capsys, system)


def refused(line: list[str], said: str, capsys: pytest.CaptureFixture[str], system: str = "kd") -> None:
    """One sentence, exit code 2, nothing written."""
    before, _ = sorted(Path().rglob("*")), capsys.readouterr()
    assert main(["distill", system, *line, "--out", "run"]) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.startswith("limbeck: ") and out.err.count("\n") == 1
    assert re.search(said, out.err), out.err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("objective", [MiniLM(pairs=(("0", "0"),) * 3), PerToken(of=KD())])
def test_what_is_taken_token_by_token(objective: Objective) -> None:
    if isinstance(objective, PerToken):
        assert per_token(0.5 * KD() + objective).parts[1] == objective  # type: ignore[attr-defined]
    else:
        with pytest.raises(Incompatible, match="losses of logits or of pairs of features, got MiniLM"):
            per_token(KD() + objective)


def test_images_of_another_size(home: Path, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4, 1, 9, 9), "y": torch.arange(4)}, tmp_path / "nine.safetensors")
    with pytest.raises(Incompatible, match="inputs of 1 × 8 × 8 numbers, got 1 × 9 × 9"):
        Images(home / "vit", tmp_path / "nine.safetensors")
    save_file({"x": torch.zeros(4, 1, 8, 8), "y": torch.arange(4) + 9}, tmp_path / "more.safetensors")
    with pytest.raises(Incompatible, match="labels from 0 to 9, got labels from 9 to 12"):
        Images(home / "vit", tmp_path / "more.safetensors")


def test_export_of_something_else(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadSetting, match="takes no --data"):
        load_problem("digits-classify", {"data": "x"})
