"""The RL token: its blocks, its masks, and the test that its decoder reads it."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.policies.attention import SelfAttentionBlock, causal, sinusoidal
from qsteer_ros.policies.extractors import load_extractor
from qsteer_ros.policies.rl_token import RLToken, load_autoencoder, save_rl_token
from qsteer_ros.policies.rl_token_network import (
    RLTokenAutoencoder,
    RLTokenDecoder,
    RLTokenShape,
    reconstruction_errors,
)
from qsteer_ros.policies.token_test import TokenTest, derangement, draw_keep, token_test

SHAPE = RLTokenShape(prefix_width=6, width=16, max_tokens=7, blocks=2, heads=8)
PASSED = TokenTest(true=0.1, zeroed=0.3, shuffled=0.2, cosine=0.9, margin=1.5)
FAILED = TokenTest(true=0.1, zeroed=0.3, shuffled=0.11, cosine=0.9, margin=1.5)


def autoencoder(shape: RLTokenShape = SHAPE, seed: int = 0) -> RLTokenAutoencoder:
    """Random weights, biases and norms included."""
    network = RLTokenAutoencoder(shape)
    source = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=source)
    return network.requires_grad_(False)


def prefixes(count: int = 3, length: int = 5, seed: int = 1) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, SHAPE.prefix_width, generator=source)


def everything(prefix: torch.Tensor) -> torch.Tensor:
    return torch.ones(prefix.shape[:2], dtype=torch.bool)


def by_torch(block: SelfAttentionBlock, width: int) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(width, block.heads, batch_first=True)
    attention.in_proj_weight.data = block.into_heads.weight.data
    attention.in_proj_bias.data = block.into_heads.bias.data
    attention.out_proj.weight.data = block.out_of_heads.weight.data
    attention.out_proj.bias.data = block.out_of_heads.bias.data
    return attention.eval()


def layer_norm(rows: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    centred = rows - rows.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def by_hand(block: SelfAttentionBlock, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The block one position and one head at a time; allowed is (B, L, L)."""
    batch, length, width = x.shape
    part = width // block.heads
    normed = layer_norm(x, block.attention_norm)
    weight, bias = block.into_heads.weight, block.into_heads.bias
    out = torch.zeros_like(x)
    for b in range(batch):
        q, k, v = (normed[b] @ weight.T + bias).split(width, dim=1)
        mixed = torch.zeros(length, width)
        for head in range(block.heads):
            cut = slice(head * part, (head + 1) * part)
            for i in range(length):
                seen = [j for j in range(length) if allowed[b, i, j]]
                score = torch.stack([q[i, cut] @ k[j, cut] / part**0.5 for j in seen])
                share = score.exp() / score.exp().sum()
                mixed[i, cut] = sum(s * v[j, cut] for s, j in zip(share, seen, strict=True))
        y = x[b] + mixed @ block.out_of_heads.weight.T + block.out_of_heads.bias
        wide = block.widen(layer_norm(y, block.mlp_norm))
        both = block.gate(wide)
        value, gate = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
        gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
        out[b] = y + (value * gelu) @ block.narrow.weight.T + block.narrow.bias
    return out


@pytest.mark.parametrize("masked", [False, True])
def test_a_block_is_what_its_equation_says(masked: bool) -> None:
    block = autoencoder().encoder.blocks[0]
    x = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(2))
    allowed = torch.ones(2, 4, 4, dtype=torch.bool)
    if masked:
        allowed = causal(4, x.device).expand(2, 4, 4).clone()
        allowed[1, :, 0] = torch.tensor([True, False, False, True])
    found = block(x, allowed[:, None])
    torch.testing.assert_close(found, by_hand(block, x, allowed), atol=1e-5, rtol=1e-5)


def test_attention_is_that_of_torch() -> None:
    block = autoencoder(seed=4).encoder.blocks[1]
    for layer in (block.narrow,):  # no MLP: only attention is left
        layer.weight.zero_()
        layer.bias.zero_()
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    normed = block.attention_norm(x)
    expected, _ = by_torch(block, 16)(normed, normed, normed, key_padding_mask=~mask)
    torch.testing.assert_close(block(x, mask[:, None, None, :]), x + expected)


@pytest.mark.parametrize("width", [8, 16, 64])
def test_a_block_has_forty_four_square_widths_of_weights_and_seventeen_of_biases(
    width: int,
) -> None:
    found = sum(p.numel() for p in SelfAttentionBlock(width, 8).parameters())
    biases = (3 + 1) + (4 + 8 + 1) + 4  # attention, MLP, two norms
    assert found == (4 + 4 + 32 + 4) * width**2 + biases * width


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of its heads: got 12 and 8"):
        SelfAttentionBlock(12, 8)


def test_positions_begin_as_sines_and_cosines() -> None:
    table = sinusoidal(50, 6)
    for i in (0, 1, 17):
        for k in range(3):
            angle = i / 10000 ** (2 * k / 6)
            np.testing.assert_allclose(table[i, 2 * k], np.sin(angle), atol=1e-5)
            np.testing.assert_allclose(table[i, 2 * k + 1], np.cos(angle), atol=1e-5)
    assert sinusoidal(3, 5).shape == (3, 5)


def test_the_encoder_is_positions_token_blocks_and_the_last_row() -> None:
    encoder = autoencoder().encoder
    prefix = prefixes()
    signal = prefix @ encoder.project.weight.T + encoder.project.bias + encoder.positions[:5]
    token = (encoder.token + encoder.token_position).expand(3, 1, 16)
    signal = torch.cat([signal, token], dim=1)
    for block in encoder.blocks:
        signal = by_hand(block, signal, torch.ones(3, 6, 6))
    found = encoder(prefix, everything(prefix))
    torch.testing.assert_close(found, signal[:, 5], atol=1e-5, rtol=1e-4)


def test_a_prefix_of_the_blocks_width_is_not_projected() -> None:
    same = RLTokenAutoencoder(RLTokenShape(prefix_width=16, width=16, max_tokens=7))
    assert isinstance(same.encoder.project, nn.Identity)
    assert isinstance(same.decoder.project, nn.Identity)


@pytest.mark.parametrize("junk", [0.0, 1e6, float("nan"), float("inf")])
def test_what_padding_holds_changes_nothing(junk: float) -> None:
    network, prefix = autoencoder(), prefixes()
    mask = everything(prefix)
    mask[1, 3:] = False
    mask[2, 1] = False  # a hole, as of an absent camera
    token, error = network.encoder(prefix, mask), network(prefix, mask)
    other = torch.where(mask[..., None], prefix, junk)
    assert torch.equal(network.encoder(other, mask), token)
    assert torch.equal(network(other, mask), error)
    assert not torch.allclose(network.encoder(prefix, everything(prefix))[1:], token[1:])


def test_the_amount_of_padding_changes_nothing() -> None:
    network, prefix = autoencoder(), prefixes(length=4)
    longer = torch.cat([prefix, prefixes(length=3, seed=9)], dim=1)
    mask = torch.cat([everything(prefix), torch.zeros(3, 3, dtype=torch.bool)], dim=1)
    close = dict(atol=1e-5, rtol=1e-5)
    short = network.encoder(prefix, everything(prefix))
    torch.testing.assert_close(network.encoder(longer, mask), short, **close)
    torch.testing.assert_close(network(longer, mask), network(prefix, everything(prefix)), **close)


def test_the_order_of_tokens_matters_only_through_their_positions() -> None:
    network, prefix = autoencoder(), prefixes()
    order = torch.tensor([3, 0, 4, 1, 2])
    mask = everything(prefix)
    plain = network.encoder(prefix, mask)
    assert not torch.allclose(network.encoder(prefix[:, order], mask), plain, atol=1e-3)
    network.encoder.positions.zero_()
    plain = network.encoder(prefix, mask)
    torch.testing.assert_close(network.encoder(prefix[:, order], mask), plain)


@pytest.mark.parametrize("moved", range(5))
def test_the_decoder_sees_only_what_stands_before(moved: int) -> None:
    network, prefix = autoencoder(), prefixes()
    token, mask = (
        torch.randn(3, 16, generator=torch.Generator().manual_seed(5)),
        everything(prefix),
    )
    before = network.decoder(token, prefix, mask)
    other = prefix.clone()
    other[:, moved] += 1.0
    after = network.decoder(token, other, mask)
    assert torch.equal(after[:, : moved + 1], before[:, : moved + 1])
    for later in range(moved + 1, 5):
        assert not torch.allclose(after[:, later], before[:, later])


def test_every_row_of_the_decoder_sees_the_token() -> None:
    network, prefix = autoencoder(), prefixes()
    mask = everything(prefix)
    one, other = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(6))
    found = network.decoder(one, prefix, mask) - network.decoder(other, prefix, mask)
    assert (found.abs().amax(dim=2) > 1e-3).all()


def test_a_hidden_context_is_not_seen() -> None:
    network, prefix = autoencoder(), prefixes()
    mask, token = everything(prefix), torch.zeros(3, 16)
    keep = mask.clone()
    keep[:, 1] = False
    other = prefix.clone()
    other[:, 1] = 5.0
    hidden = network.decoder(token, prefix, mask, keep)
    assert torch.equal(network.decoder(token, other, mask, keep), hidden)
    assert not torch.allclose(network.decoder(token, prefix, mask), hidden)


def test_the_share_hidden_is_the_share_asked_for() -> None:
    keep = draw_keep((200, 100), 0.9, torch.Generator().manual_seed(0))
    assert abs(float(keep.float().mean()) - 0.1) < 0.01
    assert draw_keep((3, 4), 0.0, torch.Generator()).all()


def test_the_error_is_the_mean_over_real_tokens_of_each_prefix() -> None:
    prefix = torch.zeros(2, 3, 2)
    rebuilt = torch.tensor([[[1.0, 3.0], [0.0, 0.0], [9.0, 9.0]], [[2.0, 0.0]] * 3])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = reconstruction_errors(rebuilt, prefix, mask)
    torch.testing.assert_close(found, torch.tensor([(1 + 9) / 2 / 2, 4 / 2]))


def test_targets_are_data_and_get_no_gradient() -> None:
    network, prefix = autoencoder().requires_grad_(True), prefixes().requires_grad_(True)
    network(prefix, everything(prefix)).sum().backward()
    assert prefix.grad is None
    assert all(p.grad is not None for p in network.parameters())


def test_a_prefix_of_another_width_or_too_long_is_refused() -> None:
    network = autoencoder()
    wide = torch.zeros(1, 3, 7)
    with pytest.raises(ConfigError, match="at most 7 tokens of width 6: got 3 of width 7"):
        network.encoder(wide, everything(wide))
    long = torch.zeros(1, 8, 6)
    with pytest.raises(ConfigError, match="got 8 of width 6"):
        network.decoder(torch.zeros(1, 16), long, everything(long))


@cache
def trained(context_dropout: float, *, ignoring: bool = False) -> RLTokenAutoencoder:
    """Trained shortly on prefixes of 4 tokens that a hidden pair of numbers decides."""
    shape = RLTokenShape(prefix_width=4, width=8, max_tokens=4, blocks=1, heads=2)
    torch.manual_seed(0)
    network = RLTokenAutoencoder(shape)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    source = torch.Generator().manual_seed(1)
    for _ in range(150):
        prefix = varied(64, source)
        mask = everything(prefix)
        keep = draw_keep((64, 4), context_dropout, source)
        token = network.encoder(prefix, mask)
        if ignoring:
            token = torch.zeros_like(token)
        loss = reconstruction_errors(
            network.decoder(token, prefix, mask, keep), prefix, mask
        ).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


MIXING = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(8))


def varied(count: int, source: torch.Generator) -> torch.Tensor:
    return torch.einsum("bk,kld->bld", torch.randn(count, 2, generator=source), MIXING)


def examined(network: RLTokenAutoencoder, context_dropout: float) -> TokenTest:
    prefix = varied(60, torch.Generator().manual_seed(99))

    def batches():
        return ((rows, everything(rows)) for rows in prefix.split(25))

    return token_test(network, batches, context_dropout=context_dropout, margin=1.5)


def test_a_decoder_that_needs_its_token_passes_the_token_test() -> None:
    found = examined(trained(0.9), 0.9)
    assert found.passed, found
    assert found.cosine > 0.8, found
    assert min(found.zeroed, found.shuffled) > 3 * found.true, found


def test_a_decoder_that_ignores_its_token_fails_however_well_it_rebuilds() -> None:
    network = trained(0.0, ignoring=True)
    blind = copy.deepcopy(network)
    for part in (blind.encoder.token, blind.encoder.token_position):
        part.data.zero_()
    blind.encoder.blocks = nn.ModuleList()  # the token it gives is the same for every prefix
    found = examined(blind, 0.0)
    assert not found.passed, found
    assert found.shuffled == found.true, found


def test_zeros_that_are_clearly_worse_do_not_pass_a_token_that_is_the_same_for_all() -> None:
    constant = copy.deepcopy(trained(0.9))
    constant.encoder.blocks = nn.ModuleList()
    found = examined(constant, 0.9)
    assert not found.passed, found


def test_nobody_keeps_its_own_token() -> None:
    for count in (2, 3, 10):
        for seed in range(5):
            order = derangement(count, torch.Generator().manual_seed(seed))
            assert sorted(order.tolist()) == list(range(count))
            assert not (order == torch.arange(count)).any()


def test_one_sample_cannot_be_examined() -> None:
    prefix = torch.zeros(1, 3, 6)
    with pytest.raises(DataError, match="at least 2 samples"):
        token_test(
            autoencoder(),
            lambda: [(prefix, everything(prefix))],
            context_dropout=0.0,
            margin=1.5,
        )


def saved(folder: Path, test: TokenTest = PASSED) -> Path:
    return save_rl_token(folder, autoencoder(), proprio_dim=2, training={}, test=test)


def test_a_checkpoint_gives_token_and_proprioception_bit_for_bit(tmp_path: Path) -> None:
    extractor = load_extractor(saved(tmp_path / "token"))
    prefix, proprio = prefixes(), np.arange(6, dtype=np.float32).reshape(3, 2)
    mask = everything(prefix)
    mask[0, 4] = False
    found = extractor.features_from_arrays(
        {"prefix": prefix.numpy(), "mask": mask.numpy()}, proprio
    )
    assert len(extractor.feature_names) == 16 + 2
    assert torch.equal(found[:, :16], autoencoder().encoder(prefix, mask))
    assert torch.equal(found[:, 16:], torch.from_numpy(proprio))


def test_half_precision_is_read(tmp_path: Path) -> None:
    extractor = load_extractor(saved(tmp_path / "token"))
    half = prefixes().half().numpy()
    proprio = np.zeros((3, 2), np.float32)
    found = extractor.features_from_arrays({"prefix": half}, proprio)
    exact = extractor.features_from_arrays({"prefix": half.astype(np.float32)}, proprio)
    assert torch.equal(found, exact)


def test_a_token_that_its_decoder_ignores_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "token", FAILED)
    with pytest.raises(ConfigError, match="must need its token: its error is 0"):
        load_extractor(folder)
    assert RLToken.load(folder, without_test=True).shape == SHAPE
    assert load_autoencoder(folder)[0].shape == SHAPE


def test_a_checkpoint_refuses_other_widths(tmp_path: Path) -> None:
    extractor = load_extractor(saved(tmp_path / "token"))
    with pytest.raises(ConfigError, match=r"prefixes of shape \(N, L, 6\): got \(3, 5, 7\)"):
        extractor.features_from_arrays({"prefix": np.zeros((3, 5, 7))}, np.zeros((3, 2)))
    with pytest.raises(ConfigError, match=r"proprioception of shape \(3, 2\): got \(3, 1\)"):
        extractor.features_from_arrays({"prefix": np.zeros((3, 5, 6))}, np.zeros((3, 1)))


def test_the_decoder_alone_is_no_encoder() -> None:
    assert not any("encoder" in name for name, _ in RLTokenDecoder(SHAPE).named_parameters())
