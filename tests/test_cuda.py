from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from cases import CASES, pruned_case
from test_topology import CONFIG, DATA, METHODS

from fxprune import prune
from fxprune.training import fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("name", ["conv_net", "convolutions", "self_attention", "standardised"])
def test_a_gpu_keeps_what_a_cpu_keeps(name: str, memory: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = CASES[name].make()
    batches = [CASES[name].batch(8, seed=seed) for seed in range(2)]
    on_cpu = prune(copy.deepcopy(model), data=batches, sparsity=0.8, memory=memory)
    on_gpu = prune(model.cuda(), data=batches, sparsity=0.8, memory=memory)
    kept = sum(int(mask.sum()) for mask in on_cpu.masks.values())
    common = sum(int((on_cpu.masks[n] & mask.cpu()).sum()) for n, mask in on_gpu.masks.items())
    assert common / kept >= 0.99


@pytest.mark.parametrize("method", METHODS)
def test_masks_move_on_a_gpu(method: str) -> None:
    model = pruned_case("conv_net")
    before = {name: mask.clone() for name, mask in model.masks.items()}
    kept = model.masks.kept
    fit(model, DATA, replace(CONFIG, device="cuda"), [METHODS[method]()])
    assert model.masks.kept == kept
    assert any(not torch.equal(before[name], mask.cpu()) for name, mask in model.masks.items())
    assert not any(bool(model.effective_weight(name)[~mask].any()) for name, mask in model.masks.items())
