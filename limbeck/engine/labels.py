"""What teachers said, on disk: of each view the likeliest classes in few bytes, and the numbers that make it again.

A store is a folder of safetensors shards and an ``index.json`` with their checksums and with what made them. It is
written a shard at a time, each whole or not at all, and read through memory maps: checksums are compared once, when it
is opened, and after that only what is drawn is loaded.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.engine.checkpoint import checksum, new_file, writing
from limbeck.engine.data import Batch, Source
from limbeck.errors import BadFile, BadSetting, Incompatible, above_zero, in_range
from limbeck.rng import Rng

UNIT = 65_535
"""Probabilities are whole numbers of 1/UNIT, so that those of k classes and what is left for the others sum to 1."""

Plain = bool | int | float | str


@dataclass(frozen=True)
class TopK:
    """The k likeliest classes of each example.

    Args:
        index: of the classes, [B, k] integers.
        units: their probabilities in 1/`UNIT`, [B, k] integers.
        classes: C.
    """

    index: Tensor
    units: Tensor
    classes: int

    @property
    def p(self) -> Tensor:
        """Probabilities of those classes, [B, k]."""
        return self.units / UNIT

    @property
    def rest(self) -> Tensor:
        """What is left for all other classes together, [B]."""
        return (UNIT - self.units.sum(1)) / UNIT

    def dense(self) -> Tensor:
        """Probabilities of all classes, [B, C]: what is left is spread evenly over those that were not kept."""
        others = max(self.classes - self.index.shape[1], 1)
        spread = (self.rest / others)[:, None].expand(-1, self.classes)
        return spread.scatter(1, self.index, self.p)


def top_k(p: Tensor, k: int) -> TopK:
    """The k likeliest classes, rounded by the largest remainder: each is off by less than 1/65535, and so is the rest.

    Args:
        p: probabilities, [B, C]; each row sums to 1.
        k: how many classes are kept; more than there are means all.

    Raises:
        BadSetting: numbers that are no probabilities.

    >>> top_k(torch.tensor([[0.1, 0.7, 0.2]]), 2).index.tolist()
    [[1, 2]]
    """
    in_range("k", k, 1)
    p = p.detach().double()
    if p.dim() != 2 or not bool((p >= 0).all()) or not bool(((p.sum(1) - 1).abs() < 1e-3).all()):
        raise BadSetting(f"labels must be probabilities [B, C] that sum to 1, got {list(p.shape)} that do not.")
    top = (p / p.sum(1, keepdim=True)).topk(min(k, p.shape[1]), dim=1)
    rest = (1 - top.values.sum(1, keepdim=True)).clamp_min(0)
    exact = torch.cat([top.values, rest], 1)[:, : p.shape[1]] * UNIT  # nothing is left where all are kept
    units = exact.floor().long()
    rank = (exact - units).argsort(dim=1, descending=True, stable=True).argsort(1)
    units = units + (rank < UNIT - units.sum(1, keepdim=True))
    return TopK(top.indices, units[:, : top.indices.shape[1]], p.shape[1])


class Augmentation(Protocol):
    """Augmentation whose random numbers are drawn apart from what is made of them. A frozen dataclass."""

    def draw(self, x: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Parameters of one view of each sample, [B, …] each."""
        ...

    def replay(self, x: Tensor, view: Mapping[str, Tensor]) -> Tensor:
        """The views, [B, …], row by row the same bits in every batch."""
        ...


@dataclass(frozen=True)
class Said:
    """Labels of some views.

    Args:
        row: which samples they are of, [B].
        view: parameters of each view, [B, …] by name.
        label: what was said of it.
    """

    row: Tensor
    view: Mapping[str, Tensor]
    label: TopK


def write_labels(folder: Path, settings: Mapping[str, Plain], shards: int, make: Callable[[int], Said]) -> None:
    """Writes a store, or what is missing of it: shards that are there and whole are not made again.

    Args:
        folder: where; it need not exist.
        settings: all that the labels depend on, ``classes`` among it.
        shards: how many.
        make: the number of a shard → its labels, the same whenever it is asked.

    Raises:
        BadFile: the folder holds labels of other settings.
        Failed: it cannot be written.
    """
    in_range("shards", shards, 1)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"settings": dict(settings), "of": shards, "shards": {}}
    if (folder / INDEX).exists():
        index = _read_index(folder)
        _agree(folder, index["settings"], {**dict.fromkeys(index["settings"]), **settings})
        if index["of"] != shards:
            raise BadFile(f"{folder} holds labels in {index['of']} shards, not in {shards}.")
    for i in range(shards):
        name = f"{i:05d}.safetensors"
        if name in index["shards"] and _is_whole(folder / name, index["shards"][name]):
            continue
        said = make(i)
        if said.label.classes != settings.get("classes"):
            raise BadSetting(f"labels need settings with classes={said.label.classes}, got {settings.get('classes')}.")
        with new_file(folder / name) as path:
            save_file(_packed(said), path)
        index["shards"][name] = {"rows": len(said.row), "sha256": checksum(folder / name)}
        with new_file(folder / INDEX) as path:  # only now does the shard count
            path.write_text(json.dumps(index, indent=1, sort_keys=True))


INDEX = "index.json"


class Labels:
    """A store that is read.

    Args:
        folder: what `write_labels` filled.
        settings: those that the labels must have been made with; others may be as they are.

    Raises:
        BadFile: no store, one that is not finished, a shard that is missing or damaged, or other settings.
    """

    def __init__(self, folder: Path, **settings: Plain):
        index = _read_index(folder)
        self.settings: dict[str, Plain] = index["settings"]
        _agree(folder, self.settings, settings)
        if len(index["shards"]) < index["of"]:
            raise BadFile(f"{folder} holds {len(index['shards'])} of {index['of']} shards; write_labels goes on.")
        self._shards = [_Shard(folder / name, known) for name, known in sorted(index["shards"].items())]
        self._ends = torch.tensor([shard.rows for shard in self._shards]).cumsum(0)
        self.classes = int(self.settings["classes"])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, rows: Tensor) -> Said:
        """The labels of these numbers, [B] integers, in that order."""
        shard = torch.bucketize(rows, self._ends, right=True)
        order, parts = shard.argsort(stable=True), list[dict[str, Tensor]]()
        for i in shard.unique().tolist():
            first = 0 if i == 0 else int(self._ends[i - 1])
            parts.append(self._shards[i].read(rows[order[shard[order] == i]] - first))
        back = order.argsort()
        return _unpacked({name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}, self.classes)


class _Shard:
    """One file of a store, mapped into memory."""

    def __init__(self, path: Path, known: Mapping[str, Any]):
        if not path.exists():
            raise BadFile(f"{path} is missing from its store of labels; write_labels makes it again.")
        if not _is_whole(path, known):
            raise BadFile(f"{path} is damaged: it has another checksum than its index says.")
        self.rows = int(known["rows"])
        try:
            with safe_open(path, framework="pt") as file:
                self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, for it has no iterator
        except (OSError, SafetensorError) as error:
            raise BadFile(f"{path} is not a whole safetensors file: {error}.") from None

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows of every tensor; the pages that hold them are what is read."""
        return {name: tensor[rows] for name, tensor in self.tensors.items()}


class Replayed(Source):
    """Views as teachers saw them, x, and what these said of them, y [B, C]: drawn like `Dataset`, without a teacher.

    Args:
        labels: of the samples.
        x: the samples, [N, …].
        views: what their parameters are made views by.

    Raises:
        Incompatible: other samples or views than those that the labels are of.
    """

    fields = frozenset({"x", "y"})

    def __init__(self, labels: Labels, x: Tensor, views: Augmentation):
        self.labels, self.x, self.views = labels, x, views
        for name, mine in (("views", repr(views)), ("samples", fingerprint(x))):
            if (theirs := labels.settings.get(name)) != mine:
                raise Incompatible("Replayed", need=f"the {name} that the labels are of, {theirs}", got=mine)

    def take(self, n: int, rng: Rng) -> Batch:
        said = self.labels.read(rng.integers(n, len(self.labels)).cpu())
        view = {name: value.to(self.x.device) for name, value in said.view.items()}
        seen = self.views.replay(self.x[said.row.to(self.x.device)], view)
        return {"x": seen.to(rng.device), "y": said.label.dense().to(rng.device)}


def reinforce_data(
    folder: Path,
    teachers: nn.Module | Sequence[nn.Module],
    x: Tensor,
    views: Augmentation,
    *,
    copies: int,
    k: int,
    temperature: float = 1.0,
    seed: int = 0,
    rows: int = 4096,
) -> Labels:
    """Asks teachers once for each of several views of every sample, and keeps what they say.

    Args:
        folder: where the store goes, or where it was begun.
        teachers: classifiers; of several the mean of their probabilities counts.
        x: samples, [N, …].
        views: how they are augmented.
        copies: views of each sample.
        k: classes that are kept of each.
        temperature: of the teachers' softmax.
        seed: of the views.
        rows: of a shard.

    Raises:
        BadSetting: no copies, classes or rows, a temperature that is not above 0.
        BadFile: the folder holds labels of other settings.
        Failed: it cannot be written.

    Source: dataset reinforcement, Faghri et al. 2023, arXiv 2303.08983.

    >>> import tempfile
    >>> from limbeck import CrossEntropy, distill
    >>> from limbeck.problems.digits import Jitter
    >>> teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2))
    >>> x, views = torch.rand(9, 1, 8, 8), Jitter()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     labels = reinforce_data(Path(folder), teacher, x, views, copies=4, k=2)
    ...     data = Replayed(labels, x, views)  # there is no teacher any more
    ...     run = distill(None, student, CrossEntropy(), data, steps=1, batch=8)
    ...     len(labels), sorted(next(iter(run)).losses)
    (36, ['cross_entropy'])
    """
    in_range("copies", copies, 1)
    in_range("rows", rows, 1)
    above_zero("temperature", temperature)
    several = [teachers] if isinstance(teachers, nn.Module) else [*teachers]
    total, known = len(x) * copies, {"copies": copies, "k": k, "temperature": temperature, "seed": seed, "rows": rows}

    def make(i: int) -> Said:
        row = torch.arange(i * rows, min((i + 1) * rows, total)) % len(x)
        view = views.draw(x[row], Rng((seed, "views", i)))
        return Said(row, view, top_k(_mean_probabilities(several, views.replay(x[row], view), temperature), k))

    said = " + ".join(fingerprint(teacher) for teacher in several)
    classes = _mean_probabilities(several, x[:1], temperature).shape[1]
    settings = {**known, "classes": classes, "teacher": said, "views": repr(views), "samples": fingerprint(x)}
    write_labels(folder, settings, -(-total // rows), make)
    return Labels(folder, **settings)


@torch.no_grad()
def _mean_probabilities(teachers: Sequence[nn.Module], x: Tensor, temperature: float) -> Tensor:
    modes = [teacher.training for teacher in teachers]
    try:
        out = [teacher.eval()(x.to(_device(teacher, x))) / temperature for teacher in teachers]
    finally:
        for teacher, mode in zip(teachers, modes, strict=True):
            teacher.train(mode)
    return torch.stack([z.double().softmax(1).cpu() for z in out]).mean(0)


def _device(module: nn.Module, x: Tensor) -> torch.device:
    p = next(module.parameters(), None)
    return x.device if p is None else p.device


def fingerprint(of: Tensor | nn.Module) -> str:
    """A digest of a tensor, or of a network's kind, names and weights.

    >>> fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(2)) != fingerprint(torch.zeros(3))
    True
    """
    tensors = {"": of} if isinstance(of, Tensor) else {type(of).__name__: torch.zeros(0), **of.state_dict()}
    digest = hashlib.sha256()
    for name, x in tensors.items():
        digest.update(f"{name} {x.dtype} {list(x.shape)} ".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _packed(said: Said) -> dict[str, Tensor]:
    """Classes take as many bytes as their number needs, the lowest first."""
    width = max(1, -(-(said.label.classes - 1).bit_length() // 8))
    bits = 8 * torch.arange(width)
    view = {f"view.{name}": value.detach().cpu().contiguous() for name, value in said.view.items()}
    return {
        "index": ((said.label.index.cpu()[..., None] >> bits) & 255).to(torch.uint8),
        "units": said.label.units.cpu().to(torch.uint16),
        "row": said.row.cpu().to(torch.int64),
        **view,
    }


def _unpacked(tensors: Mapping[str, Tensor], classes: int) -> Said:
    parts = tensors["index"].long()
    index = (parts << 8 * torch.arange(parts.shape[-1])).sum(-1)
    view = {name.removeprefix("view."): value for name, value in tensors.items() if name.startswith("view.")}
    return Said(tensors["row"], view, TopK(index, tensors["units"].long(), classes))


def _is_whole(path: Path, known: Mapping[str, Any]) -> bool:
    try:
        return checksum(path) == known["sha256"]
    except OSError:
        return False


def _read_index(folder: Path) -> dict[str, Any]:
    """The index of a store.

    Raises:
        BadFile: it is missing or damaged.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
        shards = index["shards"].values()
        if int(index["of"]) < 1 or int(index["settings"]["classes"]) < 1:
            raise ValueError("no shards or classes")
        if not all(int(shard["rows"]) > 0 and isinstance(shard["sha256"], str) for shard in shards):
            raise ValueError("a shard without rows or checksum")
    except FileNotFoundError:
        raise BadFile(f"{folder} holds no labels: it has no {INDEX}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{folder / INDEX} is not an index of labels: {error}.") from error
    return index


def _agree(folder: Path, theirs: Mapping[str, Plain], mine: Mapping[str, Plain | None]) -> None:
    for name in sorted(mine):
        if theirs.get(name) != mine[name]:
            raise BadFile(f"{folder} holds labels with {name} {theirs.get(name)!r}, not {mine[name]!r}.")


__all__ = [
    "UNIT",
    "Augmentation",
    "Labels",
    "Replayed",
    "Said",
    "TopK",
    "fingerprint",
    "reinforce_data",
    "top_k",
    "write_labels",
]
