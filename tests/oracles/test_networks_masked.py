"""Masked autoencoders: who sees what, and the errors and distances of the distillers of them, written out."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck import DMAE, G2SD, Dataset, Reconstruction, Rng, distill, filled_in
from limbeck.engine import Stage
from limbeck.engine.run import run_recipe
from limbeck.errors import BadSetting, Incompatible
from limbeck.evaluate.classification import multiply_adds
from limbeck.loading import load_problem, load_recipe
from limbeck.problems.masked import MaskedAutoencoder, MaskedPatches, patches
from limbeck.problems.networks import ViT
from limbeck.recipes.claims import at, by, over_least, rerun_after
from tests.oracles.exact import F64, close, seeds


def images(n: int = 6) -> torch.Tensor:
    return Rng("images").normal(n, 1, 8, 8, dtype=F64)


def autoencoder(width: int = 16) -> MaskedAutoencoder:
    torch.manual_seed(width)
    return MaskedAutoencoder(ViT(size=8, classes=10, width=width, blocks=2), width=12).double()


def masked() -> MaskedPatches:
    return MaskedPatches(Dataset(x=images(32), y=torch.arange(32) % 3))


def test_patches_are_where_the_stem_looks() -> None:
    x = images()
    for n in range(16):
        row, column = 2 * (n // 4), 2 * (n % 4)
        close(patches(x, 2)[:, n], x[:, 0, row : row + 2, column : column + 2].flatten(1))
    stem = nn.Conv2d(1, 5, 2, stride=2).double()
    close(stem(x).flatten(2).transpose(1, 2), patches(x, 2) @ stem.weight.flatten(1).T + stem.bias)


def test_each_example_hides_three_quarters_of_its_own() -> None:
    batch = masked().take(500, Rng(0))
    keep, hidden = batch["x"]["keep"], batch["hidden"]
    assert keep.shape == (500, 4) and bool((hidden.sum(1) == 12).all())
    assert bool((hidden.gather(1, keep) == 0).all()) and all(len(set(row)) == 4 for row in keep.tolist())
    close(hidden.mean(0), torch.full((16,), 0.75, dtype=F64), 0.1)
    close(batch["target"], patches(batch["x"]["x"], 2))
    assert sorted(batch) == ["hidden", "target", "x", "y"]


def test_what_is_hidden_is_seen_by_nobody() -> None:
    net, x, keep = autoencoder(), images(), torch.tensor([[0, 5, 10, 12]]).expand(6, -1)
    other = x.clone()
    other[:, :, 6:, 6:] = 9.0  # the last patch
    close(net(other, keep), net(x, keep))
    other[:, :, :2, :2] = 9.0  # the first one
    assert not torch.allclose(net(other, keep), net(x, keep))
    close(net(x, keep.flip(1)), net(x, keep), 1e-10)  # in any order


def test_an_encoder_that_sees_a_quarter_costs_at_most_a_quarter() -> None:
    net, x, keep = autoencoder(), images(1), torch.tensor([[0, 5, 10, 12]])
    with_all = multiply_adds(net.encoder.blocks, torch.zeros(1, 16, 16, dtype=F64))
    seen = list[int]()
    net.encoder.blocks.register_forward_pre_hook(lambda _, args: seen.append(multiply_adds_of(net, args[0])))
    net(x, keep)
    assert seen and seen[0] <= 0.25 * with_all


def multiply_adds_of(net: MaskedAutoencoder, tokens: torch.Tensor) -> int:
    """Of the same blocks in a copy without hooks."""
    assert tokens.shape[1] == 4
    blocks = ViT(size=8, classes=10, width=16, blocks=2).double().blocks
    return multiply_adds(blocks, tokens)


@seeds
def test_the_error_counts_where_it_is_hidden(seed: int) -> None:
    rng = Rng(("masked", seed))
    out, target = (rng.normal(5, 16, 4, dtype=F64) for _ in range(2))
    hidden = (rng.uniform(5, 16) < 0.7).double()
    for i in range(5):
        where = hidden[i] == 1
        close(filled_in(out, target, hidden)[i], ((out[i, where] - target[i, where]) ** 2).mean())
    out[hidden == 0] = 99.0
    changed = target.clone()
    changed[hidden == 0] = -99.0
    close(filled_in(out, target, 0 * hidden), torch.zeros(len(out), dtype=out.dtype))
    close(filled_in(out, changed, hidden), filled_in(torch.where(hidden[..., None] == 1, out, target), target, hidden))


def test_a_masked_autoencoder_learns_to_fill_in() -> None:
    student = autoencoder()
    batch = masked().take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))
    expected = filled_in(student(**batch["x"]), batch["target"], batch["hidden"]).mean().item()
    run = distill(None, student, Reconstruction(), masked(), steps=30, batch=8)
    losses = [step.losses["reconstruction"] for step in run]
    assert losses[0] == pytest.approx(expected, rel=1e-9) and losses[-1] < losses[0]


def test_features_of_the_same_few_patches_are_matched_by_absolute_differences() -> None:
    teacher, student = autoencoder(20), autoencoder(16)
    tap = "encoder.blocks.0"
    run = distill(teacher, student, DMAE(pairs={tap: tap}), masked(), steps=1, batch=8)
    x = masked().take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))["x"]
    with torch.no_grad():
        project = run.cast.roles[f"dmae projector {tap} → {tap}"].module
        s, t = (net.encoder.blocks[0](seen(net, **x)) for net in (student, teacher))
        assert s.shape == (8, 4, 16) and t.shape == (8, 4, 20)
        # role of one pair
        expected = (project[0](s) - t).abs().mean()  # type: ignore[index]
    assert run.tick().losses["dmae"] == pytest.approx(expected.item(), rel=1e-9)


def seen(net: MaskedAutoencoder, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Tokens of the patches that are kept, one by one."""
    tokens = net.encoder.stem(x).flatten(2).transpose(1, 2) + net.encoder.places
    return torch.stack([row[index] for row, index in zip(tokens, keep, strict=True)])


@seeds
@pytest.mark.parametrize("shape", [(5, 7), (5, 9, 7), (5, 7, 3, 3)])
def test_g2sd_is_the_smooth_distance_to_features_with_layer_norm(seed: int, shape: tuple[int, ...]) -> None:
    s, t = (Rng((who, seed)).normal(*shape, dtype=F64) * 3 for who in "st")
    last = (x.movedim(1, -1) if len(shape) == 4 else x for x in (s, t))
    one, two = last
    far = (one - nn.functional.layer_norm(two, (7,), eps=1e-6)).abs()
    each = torch.where(far < 2, far**2 / 4, far - 1)
    value = G2SD(pairs={"0": "0"}).value(s, t, None)  # type: ignore[arg-type]  # does not look at the tick
    close(value, each.flatten(1).mean(1))


def test_g2sd_runs_on_tokens_of_all_patches() -> None:
    run = distill(autoencoder(20), autoencoder(16), G2SD(pairs={"decoder": "decoder"}), masked(), steps=30, batch=16)
    losses = [step.losses["g2sd"] for step in run]
    assert losses[-1] < losses[0]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(BadSetting, match="MaskedPatches needs a source of x, got one of y"):
        MaskedPatches(Dataset(y=torch.zeros(3)))
    for ratio in (0.0, 1.0):
        with pytest.raises(BadSetting, match="ratio must leave some of 16 patches and hide some"):
            MaskedPatches(Dataset(x=images()), ratio=ratio).take(2, Rng(0))
    with pytest.raises(Incompatible, match="Reconstruction needs data with target and hidden"):
        distill(None, nn.Linear(4, 3), Reconstruction(), Dataset(x=torch.zeros(3, 4)), steps=1, batch=2)
    data = Dataset(x=torch.zeros(3, 4), target=torch.zeros(3, 16, 4), hidden=torch.ones(3, 16))
    with pytest.raises(Incompatible, match=r"Reconstruction needs outputs of shape \[2, 16, 4\], got \[2, 3\]"):
        distill(None, nn.Linear(4, 3), Reconstruction(), data, steps=1, batch=2).finish()
    with pytest.raises(BadSetting, match="DMAE needs pairs of taps"):
        DMAE()


def test_stages_after_one_are_run_again_from_what_was_made_before() -> None:
    """Unchanged they give the same bits; changed, only what comes after is another."""
    problem = load_problem("digits-classify")
    recipe = load_recipe("dmae", problem)
    stages = tuple(replace(s, steps=2, batch=8) for s in recipe.stages if isinstance(s, Stage))
    trial = run_recipe(replace(recipe, stages=stages), problem, seed=1)
    again = rerun_after(trial, "teacher", lambda stage: stage)
    other = rerun_after(trial, "teacher", at("student", by(Reconstruction())))
    first = trial.student.state_dict()
    assert all(torch.equal(first[name], p) for name, p in again.state_dict().items())
    assert not all(torch.equal(first[name], p) for name, p in other.state_dict().items())
    assert over_least(trial, again, again) == 1
