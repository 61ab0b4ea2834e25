"""Which norms are found, chosen and exchanged: every reference to one leads to its successor, and what cannot go says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.swap.find import find_sites
from normfold.swap.norms import NewNorm, SwappedNorm
from normfold.swap.replace import chosen, exchanged, planned
from normfold.swap.result import Left
from swapping import bn_lstm, conv_net, images, rows, trained

IMAGE = ((torch.zeros(2, 4, 5, 5),), {})


def found(module: nn.Module, call: Any = IMAGE) -> tuple[dict[str, Any], dict[str, str]]:
    sites, left = find_sites(module.eval(), call)
    return {site.name: site for site in sites}, {item.name: item.refusal.code for item in left}


def test_a_norm_of_a_cell_is_one_site_called_at_every_step() -> None:
    sites, left = found(bn_lstm(), ((rows(2),), {}))
    assert list(sites) == ["cell.bn_input", "cell.bn_recurrent"]
    assert [(site.calls, site.channels, site.axis, site.positions, site.ranks) for site in sites.values()] == [
        (4, 24, 1, 1, {2})
    ] * 2
    assert left == {}


def test_every_kind_of_norm_is_known_with_its_axis() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)
            self.d, self.e, self.f = nn.LayerNorm(5), nn.RMSNorm(5), nn.SyncBatchNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.f(self.e(self.d(self.c(self.b(self.a(x))))))

    sites, left = found(Net())
    kinds = {name: (site.kind, site.channels, site.axis, site.positions) for name, site in sites.items()}
    assert kinds == {
        "a": ("batch", 4, 1, 25),
        "b": ("group", 4, 1, 25),
        "c": ("instance", 4, 1, 25),
        "d": ("layer", 5, -1, 20),
        "e": ("rms", 5, -1, 20),
        "f": ("batch", 4, 1, 25),
    }
    assert left == {}


class NormAct(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class Functional(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.one = kind, nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "batch_norm":
            x = F.batch_norm(x, self.one.running_mean, self.one.running_var)
        elif self.kind == "torch":
            x = torch.batch_norm(x, None, None, self.one.running_mean, self.one.running_var, False, 0.1, 1e-5, False)
        else:
            x = F.instance_norm(x)
        return self.one(x)


@pytest.mark.parametrize("kind", ["batch_norm", "torch", "instance_norm"])
def test_a_norm_that_is_a_function_is_named_by_who_calls_it(kind: str) -> None:
    sites, left = found(nn.Sequential(nn.Conv2d(4, 4, 1), Functional(kind)))
    assert list(sites) == ["1.one"]
    assert left == {"1": "functional"}


def test_what_cannot_be_exchanged_says_why() -> None:
    hooked = nn.BatchNorm2d(4)
    hooked.register_forward_hook(lambda *_: None)
    parts = [NormAct(4), hooked, nn.LayerNorm([5, 5]), nn.BatchNorm2d(4)]
    module = nn.Sequential(*parts)
    module.unused = nn.BatchNorm2d(4)
    module.forward = lambda x: nn.Sequential(*parts)(x)  # type: ignore[method-assign]
    sites, left = found(module)
    assert list(sites) == ["3"]
    assert left == {"0": "own-forward", "1": "hooks", "2": "several-axes", "unused": "not-called"}
    assert found(nn.BatchNorm2d(4))[1] == {"": "whole-model"}
    sites, left = found(nn.Sequential(nn.InstanceNorm2d(4)), ((torch.zeros(4, 5, 5),), {}))
    assert (sites, left) == ({}, {"0": "no-samples"})


def test_inputs_that_do_not_run_are_the_users_error() -> None:
    with pytest.raises(UsageError, match="Sequential does not run on the given inputs: RuntimeError"):
        find_sites(nn.Sequential(nn.Linear(3, 3)), ((torch.zeros(2, 4),), {}))


# ---- exchange ------------------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One norm under two names, kept in a plain list and called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(4)
        self.second = self.first
        self.hidden = [self.first]
        self.other = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.hidden[0](self.second(self.first(x).tanh()).tanh()))


def test_one_module_stays_one_module_under_all_its_names() -> None:
    module = trained(Shared, 4)
    sites, _ = find_sites(module, ((torch.randn(3, 4),), {}))
    site = sites[0]
    assert site.names == ("first", "second") and site.calls == 3
    student: Any = exchanged(module, {"second": NewNorm("layernorm", 4)})
    assert isinstance(student.first, SwappedNorm)
    assert student.first is student.second is student.hidden[0]
    assert type(student.other) is nn.BatchNorm1d
    assert chosen(sites, "batch", ["sec*"], []) == [site]


def test_the_original_is_not_touched_and_shares_nothing() -> None:
    module = conv_net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    student = exchanged(module, {"body.1": NewNorm("layernorm", 8)})
    with torch.no_grad():
        for tensor in (*student.parameters(), *student.buffers()):
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not student.training and isinstance(module.get_submodule("body.1"), nn.BatchNorm2d)


def test_the_new_norm_has_the_type_of_the_network() -> None:
    student = exchanged(conv_net().double(), {"body.1": NewNorm("layernorm", 8)})
    assert student.get_submodule("body.1").weight.dtype == torch.float64


def test_a_name_that_leads_nowhere() -> None:
    with pytest.raises(UsageError, match=r"has no module 'body\.9'"):
        exchanged(conv_net(), {"body.9": NewNorm("layernorm", 8)})


def test_patterns_choose_and_must_name_something() -> None:
    sites, _ = find_sites(conv_net(), ((images(2),), {}))
    names = lambda *args: [site.name for site in chosen(sites, "batch", *args)]  # noqa: E731
    assert names([], []) == ["body.1", "body.4"]
    assert names(["*.4"], []) == ["body.4"]
    assert names([], ["*.4"]) == ["body.1"]
    with pytest.raises(UsageError, match=r"no norm that could be swapped is called 'head'; there is body\.1, body\.4"):
        names(["head"], [])
    with pytest.raises(UsageError, match=r"there is no layer norm to swap; it has batch norms, which --from names"):
        chosen(sites, "layer", [], [])


def test_what_a_norm_cannot_become() -> None:
    vector, _ = find_sites(bn_lstm(), ((rows(2),), {}))
    codes = {}
    for to, groups in (("instancenorm", None), ("groupnorm", 24)):
        left = planned(vector[0], to, groups)  # type: ignore[arg-type]
        assert isinstance(left, Left)
        codes[to] = left.refusal.code
    assert codes == {"instancenorm": "no-positions", "groupnorm": "no-positions"}
    with pytest.raises(UsageError, match="24 channels cannot be cut in 7 equal groups"):
        planned(vector[0], "groupnorm", 7)
    assert planned(vector[0], "groupnorm", 4) == NewNorm("groupnorm", 24, groups=4)
    single, _ = find_sites(nn.Sequential(nn.BatchNorm1d(1), nn.LayerNorm(1)), ((torch.zeros(2, 1),), {}))
    assert [planned(site, "layernorm", None).refusal.code for site in single] == ["one-channel", "same"]  # type: ignore[union-attr]
