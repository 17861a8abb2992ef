"""Pictures of `sparse_mixer.plots`."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sparse_mixer import plots


def routing(groups=2, tokens=12, experts=3, capacity=2, seed=0):
    """Experts-choose routing of random logits, in the form that an encoder returns."""
    logits = np.random.default_rng(seed).standard_normal((groups, tokens, experts))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :capacity]
    return {
        "indices": order.transpose(0, 2, 1).astype(np.int32),
        "probabilities": probabilities.astype(np.float32),
    }


def test_combine_weights_keeps_the_probabilities_of_chosen_tokens():
    entry = routing()
    weights = plots.combine_weights(entry)
    assert weights.shape == (2, 12, 3)
    assert weights.dtype == np.float32
    for group in range(2):
        for expert in range(3):
            chosen = entry["indices"][group, expert]
            expected = np.zeros(12, np.float32)
            expected[chosen] = entry["probabilities"][group, chosen, expert]
            np.testing.assert_array_equal(weights[group, :, expert], expected)


def test_combine_weights_skip_empty_slots():
    entry = routing()
    entry["indices"][0, 1, 0] = -1
    weights = plots.combine_weights(entry)
    assert np.count_nonzero(weights[0, :, 1]) == 1
    assert np.count_nonzero(weights) == 2 * 3 * 2 - 1


def test_combine_weights_of_capacity_zero_are_zero():
    assert not plots.combine_weights(routing(capacity=0)).any()


def test_routing_figure_has_a_panel_per_layer(tmp_path):
    pytest.importorskip("matplotlib")
    mask = np.array([1] * 9 + [0] * 3)
    figure = plots.routing_figure([routing(), routing(seed=1)], [5, 6], group=1, mask=mask)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.split(":")[0] for title in titles if title] == ["layer 5", "layer 6"]
    figure.savefig(tmp_path / "routing.png", dpi=40)
    assert (tmp_path / "routing.png").stat().st_size > 1000
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(
    ("layers", "group", "message"),
    [([5], 2, "group: expected 0 to 1, got 2"), ([5, 6], 0, "moe_layers"), ([], 0, "moe")],
)
def test_routing_figure_refuses(layers, group, message):
    with pytest.raises(ValueError, match=message):
        plots.routing_figure([routing()] if layers else [], layers, group=group)


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"sparse_mixer\[plot\]"):
        plots.routing_figure([routing()], [5])
