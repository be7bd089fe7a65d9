"""Directions of forget inputs, by hand and on an adapter that then leaves other rows alone."""

from __future__ import annotations

import torch

from llm_forget.config import AdapterConfig
from llm_forget.data.encode import Encoded
from llm_forget.model.blocks import add_adapter
from llm_forget.model.directions import adapted_layers, aim_adapter, aiming_moments, forget_directions
from llm_forget.model.measure import answer_logps
from llm_forget.testing import tiny_model, tiny_tokenizer


def test_by_hand() -> None:
    """F = 1 and K = diag(1, 0): only the second input tells the rows apart, and it answers forget inputs with energy 1."""
    found = forget_directions(torch.eye(2), torch.diag(torch.tensor([1.0, 0.0])), 1)
    torch.testing.assert_close(found.abs(), torch.tensor([[0.0, 1.0]]), atol=1e-4, rtol=0)


def test_energies_and_order() -> None:
    """Every direction has energy 1 on forget inputs, and the energies on kept inputs grow: the best direction comes first."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 24), torch.randn(300, 24) * torch.linspace(0.1, 3, 24)
    forget, keep = x.T @ x / 200, y.T @ y / 300
    found = forget_directions(forget, keep, 4)
    torch.testing.assert_close(found @ forget @ found.T, torch.eye(4), atol=2e-2, rtol=0)
    energies = (found @ keep @ found.T).diagonal()
    assert energies.tolist() == sorted(energies.tolist())
    assert energies[0] < 0.1 * keep.diagonal().mean()


def test_an_aimed_adapter_hardly_moves_other_rows() -> None:
    """The same random B moves the log-probs of forget rows far more than those of the rows to keep."""
    torch.manual_seed(0)
    forget = [Encoded(f"f{row}", tuple(40 + row + 3 * place for place in range(9)), 3) for row in range(3)]
    keep = [Encoded(f"k{row}", tuple(150 + row + 2 * place for place in range(9)), 3) for row in range(6)]
    model = add_adapter(tiny_model(tiny_tokenizer(), hidden=64), AdapterConfig(rank=2, alpha=2))
    before = [answer_logps(model, rows, 0)[0] for rows in (forget, keep)]
    assert aim_adapter(model, aiming_moments(model, forget, 0), aiming_moments(model, keep, 0)) > 0
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_B" in name for name in trained)
    for value in trained.values():
        torch.nn.init.normal_(value, std=0.05)
    moved = [
        (answer_logps(model, rows, 0)[0] - old).abs().mean() for rows, old in zip((forget, keep), before, strict=True)
    ]
    assert moved[0] > 4 * moved[1]


def test_trial_passes_are_no_rows() -> None:
    """The first scores of a model try its head on other tokens, which must not count: a second call gives the same moments."""
    rows = [Encoded("f", (40, 41, 42, 43, 44), 2)]
    model = add_adapter(tiny_model(tiny_tokenizer(), hidden=32), AdapterConfig(rank=4))
    first, second = (aiming_moments(model, rows, 0) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_a_rank_above_the_number_of_inputs_leaves_rows_without_use() -> None:
    """Of 40 rows of A, the 32 inputs fill the first 32; the others are 0, and the adapter trains and exports like any other."""
    forget = [Encoded("f", (40, 41, 42, 43, 44), 2)]
    keep = [Encoded("k", (50, 51, 52, 53, 54), 2)]
    model = add_adapter(tiny_model(tiny_tokenizer(), hidden=32), AdapterConfig(rank=40, alpha=40))
    aim_adapter(model, aiming_moments(model, forget, 0), aiming_moments(model, keep, 0))
    narrow = [module.lora_A["default"].weight for module in adapted_layers(model).values()]
    narrow = [a for a in narrow if a.shape[1] == 32]
    assert narrow
    for a in narrow:
        assert a[:32].norm(dim=1).min() > 0
        assert a[32:].abs().max() == 0
