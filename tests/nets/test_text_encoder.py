"""Captions as a context: ids and words, what a row may read, and torch's own transformer layer."""

import numpy as np
import pytest
from at_once import at_once

from probgen import nets
from probgen.errors import DataError, DeclarationError, ShapeError, UnknownName
from probgen.trees import tree_map

WORDS = ("a", "red", "blue", "disk", "on")
TEXT = nets.TextEncoder(WORDS, length=6, dim=8, num_heads=2, num_layers=2)
RNG = np.random.default_rng(0)


def rows(b, net, *captions, seed=0):
    """The contexts of captions, by the same random weights."""
    params = tree_map(b.asarray, net.init(np.random.default_rng(seed), (net.length,)))
    ids = b.asarray(net.tokens(captions))
    return at_once(b, lambda p, i: (net.apply(p, i), net.null(p)), params, ids)


def test_captions_become_ids_and_come_back():
    ids = TEXT.tokens(["a Red disk", "", " blue  disk "])
    expected = [[1, 2, 3, 5, 0, 0], [1, 0, 0, 0, 0, 0], [1, 4, 5, 0, 0, 0]]
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == np.int32 and TEXT.tokens("a").shape == (1, 6)
    assert TEXT.words(ids) == ["a red disk", "", "blue disk"] and TEXT.words(ids[0]) == [
        "a red disk"
    ]
    assert TEXT.all_words[TEXT.tokens("disk")[0, 1]] == "disk"


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_causal_row_reads_no_later_token_and_padding_reads_the_caption(b, is_causal):
    net = nets.TextEncoder(WORDS, 6, 8, 2, 2, is_causal=is_causal)
    (one, other, empty), null = rows(b, net, "a red disk", "a red on", "")
    np.testing.assert_allclose(empty, null, atol=1e-6)
    moved = np.abs(one - other).max(-1)
    assert (moved[3:] > 1e-3).all()  # the word that differs, and the padding behind it
    assert (moved[:3] < 1e-6).all() if is_causal else (moved[:3] > 1e-3).all()


CAUSAL = pytest.param(True, marks=pytest.mark.repeated(
    "test_padding_apart_is_the_same_whatever_the_caption"
))  # fmt: skip


@pytest.mark.parametrize("is_causal", [False, CAUSAL])
def test_padding_apart_is_the_same_whatever_the_caption(b, is_causal):
    net = nets.TextEncoder(WORDS, 6, 8, 2, 2, is_causal=is_causal, is_padding_apart=True)
    (one, other), null = rows(b, net, "a red disk", "on")
    np.testing.assert_allclose(one[4:], null[4:], atol=1e-6)
    np.testing.assert_allclose(other[2:], null[2:], atol=1e-6)
    assert (np.abs(one - other).max(-1)[1:4] > 1e-3).all()


def test_it_is_torchs_own_layer_with_the_same_weights():
    """Pre-norm, GELU, with and without a causal mask."""
    torch = pytest.importorskip("torch")
    d, net = 8, nets.TransformerLayer(2, 3)
    params = tree_map(torch.as_tensor, net.init(RNG, (5, d)))
    theirs = torch.nn.TransformerEncoderLayer(
        d, 2, 3 * d, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    own = {
        "self_attn.in_proj_weight": torch.cat([params["self"][n]["weight"] for n in QKV], 1).T,
        "self_attn.in_proj_bias": torch.cat([params["self"][n]["bias"] for n in QKV]),
        "self_attn.out_proj.weight": params["self"]["out"]["weight"].T,
        "self_attn.out_proj.bias": params["self"]["out"]["bias"],
        **{f"linear{i}.weight": params[n]["weight"].T for i, n in MLP},
        **{f"linear{i}.bias": params[n]["bias"] for i, n in MLP},
        **{f"norm{i}.weight": params[n]["scale"] for i, n in NORMS},
        **{f"norm{i}.bias": params[n]["offset"] for i, n in NORMS},
    }
    theirs.load_state_dict(own)
    x, mask = (
        torch.as_tensor(RNG.normal(size=(3, 5, d)).astype("f")),
        np.tril(np.ones((5, 5), bool)),
    )
    for ours in (None, mask):
        blocked = None if ours is None else torch.as_tensor(~ours)
        np.testing.assert_allclose(
            net.apply(params, x, mask=ours), theirs(x, src_mask=blocked).detach(), atol=1e-5
        )


QKV = ("query", "key", "value")
MLP = ((1, "mlp_in"), (2, "mlp_out"))
NORMS = ((1, "norm0"), (2, "norm2"))


def test_what_is_no_caption_is_refused():
    with pytest.raises(UnknownName, match="word 'dusk' in 'a dusk', .* did you mean 'disk'"):
        TEXT.tokens("a dusk")
    with pytest.raises(DataError, match="caption of 6 words, .* at most 5, which fit"):
        TEXT.tokens("a a a a a a")
    with pytest.raises(DataError, match="type int, expected a text"):
        TEXT.tokens([3])
    with pytest.raises(DataError, match="type float64, expected whole numbers, 0 ... 6"):
        TEXT.check_values(np.ones((2, 6)))
    with pytest.raises(DataError, match="from 0 to 7, expected 0 ... 6"):
        TEXT.words(np.array([0, 7]))
    with pytest.raises(ShapeError, match=r"expected \(6,\), a whole caption"):
        TEXT.init(RNG, (5,))
    for word in ("Red", "two words", "<pad>"):
        with pytest.raises(DeclarationError, match="words in lower case"):
            nets.TextEncoder((word,))
