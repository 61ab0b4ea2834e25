"""The statistics-matching start is the least-squares optimum per channel, on the original's own activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normfold.swap.data import Data
from normfold.swap.distil import layer_errors
from normfold.swap.find import Site, find_sites
from normfold.swap.fit import Moments, Scales, fit
from normfold.swap.norms import NewNorm
from normfold.swap.replace import exchanged
from swapping import bn_lstm, conv_net, images, rows


def started(module: nn.Module, x: Tensor, to: Any, batch: int = 7) -> tuple[nn.Module, list[Site], Scales]:
    data = Data([((x,), {})])
    sites, _ = find_sites(module, data.take([0, 1])[0])
    student = exchanged(module, {site.name: NewNorm(to, site.channels, site.axis, groups=2) for site in sites})
    return student, sites, fit(module, student, sites, data.batches(batch))


def seen(module: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """(inputs, outputs) [positions, C] of a norm, all calls together, float64."""
    pairs: list[tuple[Tensor, Tensor]] = []
    flat = lambda t: t.movedim(1, -1).reshape(-1, t.shape[1]).double()  # noqa: E731
    handle = module.get_submodule(name).register_forward_hook(lambda _, a, y: pairs.append((a[0].clone(), y.clone())))
    with torch.no_grad():
        module(x)
    handle.remove()
    return torch.cat([flat(a) for a, _ in pairs]), torch.cat([flat(y) for _, y in pairs])


@pytest.mark.parametrize("to", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("net, x", [(bn_lstm, rows()), (conv_net, images())], ids=["cell", "conv"])
def test_gamma_and_beta_are_the_least_squares_of_the_originals_output(net: Any, x: Tensor, to: Any) -> None:
    module = net()
    student, sites, scales = started(module, x, to)
    for site in sites:
        a, y = seen(module, site.name, x)
        new: Any = student.get_submodule(site.name)
        n = NewNorm(to, site.channels, -1).make().double().core(a).numpy()
        for channel in range(site.channels):
            design = np.stack([n[:, channel], np.ones(len(n))], 1)
            wanted = np.linalg.lstsq(design, y[:, channel].numpy(), rcond=None)[0]
            found = [new.weight[channel].item(), new.bias[channel].item()]
            np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=2e-4)
        assert scales.norms[site.name] == pytest.approx(float(y.var(0, correction=0).mean()), rel=1e-5)


def test_the_start_is_better_than_the_old_gamma_and_beta() -> None:
    module, x = bn_lstm(), rows()
    student, sites, scales = started(module, x, "layernorm")
    names, one = [site.name for site in sites], [((x,), {})]
    fitted = layer_errors(module, student, names, one, scales)
    for site in sites:
        student.get_submodule(site.name).load_state_dict({k: getattr(site.module, k).detach() for k in ("weight", "bias")})
    copied = layer_errors(module, student, names, one, scales)
    assert all(0 < fitted[name] < 0.9 * copied[name] for name in names)
    assert all(fitted[name] < 1 for name in names)  # better than the mean alone


def test_none_takes_the_affine_map_of_a_batchnorm_exactly_whatever_was_seen() -> None:
    module: Any = conv_net()
    module.body[1].eps = module.body[4].eps = 0.3
    student, _, _ = started(module, torch.zeros(4, 2, 6, 6), "none")  # constant channels: data say nothing of the scale
    other = 5 * images(9, seed=3) - 2
    with torch.no_grad():
        torch.testing.assert_close(student(other), module(other), rtol=1e-4, atol=1e-4)


def test_batches_merge_to_the_moments_of_all() -> None:
    n, t = torch.randn(50, 3, dtype=torch.float64) + 1e4, torch.randn(50, 3, dtype=torch.float64)
    whole = Moments.of(n, t)
    merged = Moments.of(n[:1], t[:1]).merged(Moments.of(n[1:20], t[1:20])).merged(Moments.of(n[20:], t[20:]))
    for name in ("mean_n", "mean_t", "nn", "nt", "tt"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    assert merged.count == 50


def test_a_constant_channel_gets_gamma_zero_and_the_mean() -> None:
    n, t = torch.randn(20, 2, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    n[:, 1] = 3.0
    gamma, beta = Moments.of(n, t).solved()
    assert gamma[1] == 0 and beta[1] == pytest.approx(float(t[:, 1].mean()))
    assert gamma[0] != 0


def test_scales_of_the_outputs_are_their_variances() -> None:
    module, x = conv_net(), images()
    _, _, scales = started(module, x, "layernorm")
    with torch.no_grad():
        assert scales.outputs == [pytest.approx(float(module(x).double().var(correction=0)), rel=1e-6)]


def test_the_network_that_is_measured_stays_as_it_was() -> None:
    module, x = conv_net(), images()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    started(module, x, "layernorm")
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert not any(vars(part)["_forward_hooks"] for part in module.modules())
