"""A pipeline's folder as something to distil on: its denoiser teaches, and is the judge of what it taught."""

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.bridges.conditions import LABELLED, PROMPTED, config_of, is_packed, labels_of, prompt_inputs, size_of
from limbeck.bridges.diffusers import Diffusers, read_pipeline, steps_of
from limbeck.bridges.folder import index_of, local, place_of
from limbeck.bridges.latents import Latents
from limbeck.bridges.prompts import Prompts, encode, kept, read_prompts
from limbeck.diffusion import Denoiser, Guidance, Karras
from limbeck.engine.data import Batch, Drawn, Source
from limbeck.engine.settings import settings
from limbeck.errors import BadSetting, Incompatible
from limbeck.problems.problem import Generative, home_of
from limbeck.rng import Rng
from limbeck.tree import Tree, moved, rows, tree_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATIO = 1.2
"""Where one step suits a pipeline, σ/α; see `steps_of`."""


class Pipeline(Generative):
    """A pipeline of diffusers: images without conditions, of classes, or of prompts; in latent space where it has one.

    Samples of the teacher's own are data and reference, each by noise of its own. A generator's steps are some that a
    pipeline takes by itself, so that it can leave as one; see `write_pipeline`.

    Args:
        folder: of the pipeline, or its id.
        prompts: a text file, one prompt a line, for a pipeline that takes texts.
        negative: what stands in the place of the empty prompt under guidance.
        cache: a folder where `keep` has put the embedded prompts of this run; they are then as they were.
        weights: whether they are read; else the networks are on the meta device.

    Raises:
        Incompatible: diffusers is missing, an unknown network, a scheduler that is no noise process of ours.
        BadSetting: prompts for a pipeline without texts, or the other way round.
        BadFile: a folder that is no pipeline, a file without prompts.
    """

    device = "cuda"
    judged = 512
    guidance: Guidance | None = None
    """On the teacher, where its samples are real ones."""

    def __init__(
        self,
        folder: str | Path,
        *,
        prompts: str | Path | None = None,
        negative: str | None = None,
        cache: Path | None = None,
        weights: bool = True,
    ):
        self.folder, self.name = local(folder), Path(folder).resolve().name
        self.takes_prompts = _check(self.folder, prompts, negative)
        known = kept(cache, self.folder) if cache and self.takes_prompts else None
        self._known, self.negative = known, negative
        self.texts = read_prompts(Path(prompts)) if prompts and known is None else ()
        self.weights, self.network_read = weights, read_pipeline(self.folder, weights=weights)
        net, self.latents = self.network_read.net, Latents(self.folder)
        self.shape, self.shown = _shape(net), min(self.shown, 20) if self.latents.there else self.shown
        self.classes = labels_of(net)
        (self.ratio,) = steps_of(self.network_read.clock, 1, ratio=RATIO)
        (noisiest,) = steps_of(self.network_read.clock, 1)
        self.times = Karras(sigma_min=0.02, sigma_max=min(noisiest, 40.0))  # above, x0 from ε is mostly its error

    @cached_property
    def prompts(self) -> Prompts:
        """Embedded prompts."""
        return self._known or encode(self.folder, self.texts, self.negative)

    @cached_property
    def teacher(self) -> Diffusers:
        if self.takes_prompts:
            self.network_read.null = self._inputs(self.prompts.null)
        return self.network_read

    def _inputs(self, text: dict[str, Tensor]) -> dict[str, Tree]:
        return prompt_inputs(self.network_read.net, text, self.latents.pixels(self.shape))

    @cached_property
    def source(self) -> Source:
        return Own(self)

    def levels(self, ratios: tuple[float, ...]) -> tuple[float, ...]:
        return steps_of(self.network_read.clock, len(ratios), ratio=ratios[0])

    def conditions(self, n: int, rng: Rng) -> Tree:
        if self.classes is not None:
            return rng.integers(n, self.classes)
        if not self.takes_prompts:
            return None
        index = rng.integers(n, len(self.prompts.texts))
        return self._inputs(tree_map(lambda x: x[index.to(x.device)].to(rng.device), self.prompts.rows))

    def spread(self, n: int) -> Tree:
        return self.told(torch.arange(n))

    def told(self, index: Tensor) -> Tree:
        """The conditions of samples of the teacher's own, by their numbers [B]."""
        if self.classes is not None:
            return index % self.classes
        if not self.takes_prompts:
            return None
        return self._inputs(rows(self.prompts.rows, index % len(self.prompts.texts)))

    @cached_property
    def _reference(self) -> Tensor:
        return self.own("reference", 2 * self.judged)

    def own(self, name: str, n: int) -> Tensor:
        """n samples of the teacher's own by the noise of this name, whose conditions `told` knows."""
        noise, parts = Rng((self.name, name)).normal(n, *self.shape, dtype=torch.float32), torch.arange(n).split(BATCH)
        if not self.weights:  # only shapes are asked for
            return noise
        return torch.cat([self.teacher_sample(noise[part], self.told(part)) for part in parts])

    def reference(self) -> Tensor:
        return self._reference

    def asked_by(self, recipe: Any) -> None:
        """Its samples are those of the teacher under the guidance that a recipe has on it."""
        paths = ((path.split("."), value) for path, value in settings(recipe).items())
        found = [value for path, value in paths if path[-1] == "guidance" and not OTHERS & set(path)]
        self.guidance = next((value for value in found if isinstance(value, Guidance)), None)
        if self.guidance and not self.takes_prompts and not self.network_read.null:
            need, got = "a network that knows what no condition is", f"{self.name}, which does not"
            raise Incompatible("guidance", need=need, got=got, fit="guidance None")

    @property
    def asked(self) -> Denoiser:
        return self.guidance(self.teacher) if self.guidance else self.teacher

    @property
    def guidable(self) -> bool:
        """Whether diffusers guides it where it is not told otherwise."""
        return self.classes is not None or (self.takes_prompts and not is_packed(self.network_read.net))

    @property
    def nfe(self) -> int:
        return super().nfe * (2 if self.guidance else 1)

    def features(self, x: Tensor) -> Tensor:
        """Of latents, what they decode to, shrunk to at most 16 × 16; else the images themselves."""
        return self._reference_features if x is self.__dict__.get("_reference") else self._features(x)

    @cached_property
    def _reference_features(self) -> Tensor:
        return self._features(self._reference)

    def _features(self, x: Tensor) -> Tensor:
        if not self.latents.there:
            return x.flatten(1)
        return torch.cat([_shrunk(part).flatten(1) for part in self._decoded(x)])

    def _decoded(self, x: Tensor) -> Iterator[Tensor]:
        yield from (part.to(x.device) for part in self.latents.decode(x.to(home_of(self.network_read))))

    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        return torch.ones(len(x), dtype=torch.bool)

    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        x = torch.cat([*self._decoded(x)]) if self.latents.there else x
        tiles = F.pad(x, (1, 1, 1, 1), value=-1)
        tiles = torch.cat([tiles, tiles.new_full((-len(tiles) % 10, *tiles.shape[1:]), -1.0)]).unflatten(0, (-1, 10))
        picture = (tiles.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2) / 2 + 0.5).clamp(0, 1)
        colours = picture if len(picture) == 3 else picture[:1].expand(3, -1, -1)
        axes.imshow(colours.movedim(0, 2).numpy())

    def keep(self, folder: Path) -> None:
        if self.takes_prompts and self._known is None:
            self.prompts.write(folder / "prompts")


OTHERS = {"fake", "noise", "null", "critic"}
"""Parts of objectives whose guidance is not the teacher's."""

BATCH = 64
"""So many samples of the teacher's at once."""


class Own(Source):
    """A teacher's own samples with their conditions, made when they are first asked for; see `Source.only`."""

    def __init__(self, problem: Pipeline):
        self.problem = problem
        told = problem.takes_prompts or problem.classes is not None
        self.fields = frozenset({"x", "cond"} if told else {"x"})

    @cached_property
    def _made(self) -> Tensor:
        return self.problem.own("data", 4 * type(self.problem).judged)

    def take(self, n: int, rng: Rng) -> Batch:
        index = rng.integers(n, len(self._made)).to(self._made.device)
        return moved({"x": self._made[index], "cond": self.problem.told(index)}, rng.device)

    def only(self, fields: Collection[str]) -> Source:
        if "x" in fields:
            return self
        told = self.fields - {"x"}
        return Drawn(lambda n, rng: dict.fromkeys(told, self.problem.conditions(n, rng)), fields=(*told,))


def _check(folder: Path, prompts: str | Path | None, negative: str | None) -> bool:
    """Whether a pipeline takes prompts; says what does not fit before anything large is read."""
    part = index_of(folder)[place_of(folder)]
    kind = str(part[-1] if isinstance(part, list) and part else part)
    if kind not in (*LABELLED, *PROMPTED):
        got, fit = f"a {kind}", "Diffusers and distill(), with conditions of your own"
        raise Incompatible(
            "a pipeline as a problem", need=f"one of {', '.join((*LABELLED, *PROMPTED))}", got=got, fit=fit
        )
    if kind in PROMPTED and prompts is None:
        raise BadSetting(f"{folder} takes texts: it needs --prompts FILE, one a line.")
    if kind in LABELLED and (prompts is not None or negative is not None):
        raise BadSetting(f"{folder} takes no texts, so it needs no --prompts and no --negative.")
    return kind in PROMPTED


def _shape(net: Any) -> tuple[int, ...]:
    """Of one sample."""
    config = config_of(net)
    channels = config["in_channels"]
    out = config.get("out_channels") or channels
    if out < channels:
        need = "a network that is given noised samples alone"
        raise Incompatible("a pipeline as a problem", need=need, got=f"one with {channels - out} channels more")
    if not is_packed(net) and not config["sample_size"]:
        raise Incompatible("a pipeline as a problem", need="a network that knows its size", got="no sample_size")
    return (channels // 4 if is_packed(net) else channels, *size_of(net))


def _shrunk(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, (min(16, x.shape[2]), min(16, x.shape[3])))


__all__ = ["Own", "Pipeline"]
