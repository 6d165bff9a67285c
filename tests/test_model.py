"""The model as a whole: isolation, loss scaling, frozen parts, meta builds."""

from dataclasses import replace

import lightning
import pytest
import torch
from tiny import tiny_batch, tiny_model


def hidden_of(model, batch):
    """Embeddings (leaf) and hidden states of a pack."""
    with torch.no_grad():
        embeds = model.embed(batch.ids, batch.slots, batch.waves)
    embeds.requires_grad_()
    return embeds, model.llm(embeds[None], batch.positions[None], spans=batch.spans)[0]


@pytest.mark.parametrize("poison", [0.5, float("nan")])
def test_one_bad_clip_never_reaches_another_example(poison):
    """One NaN in a pack: every other example's hidden states and gradients stay equal bit for bit."""
    model = tiny_model()
    batch = tiny_batch(model, "hsth")
    bad = replace(batch, waves=(torch.full_like(batch.waves[0], poison), *batch.waves[1:]))
    outputs = []
    for each in (batch, bad):
        embeds, hidden = hidden_of(model, each)
        weights = torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape)
        outputs.append((hidden.detach(), torch.autograd.grad((hidden * weights).sum(), embeds)[0]))
    first = batch.spans.lengths[0]
    assert not torch.equal(outputs[0][0][:first], outputs[1][0][:first])
    for clean, dirty in zip(*outputs, strict=True):
        assert torch.equal(clean[first:], dirty[first:])


def test_packed_equals_alone():
    model = tiny_model()
    _, packed = hidden_of(model, tiny_batch(model, "hst"))
    start = 0
    for number, kind in enumerate("hst"):
        alone = tiny_batch(model, "hst"[: number + 1])  # the same example, last of a shorter pack
        _, hidden = hidden_of(model, alone)
        length = alone.spans.lengths[number]
        assert torch.allclose(packed[start : start + length], hidden[-length:], atol=1e-5), kind
        start += length


def test_a_clip_must_fill_its_slot():
    model = tiny_model()
    batch = tiny_batch(model, "h")
    with pytest.raises(ValueError, match="slot of"):
        model(replace(batch, waves=(batch.waves[0][:3200],)))


class Fit(lightning.LightningDataModule):
    """Fixed batches."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)


def train(batches, accumulate, steps=-1, takes_part=False):
    """Gradients that reach the optimizer, one dict per step, with a learning rate of zero."""
    model = tiny_model().train()
    model.takes_part = takes_part
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            loss = closure()
            seen.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            return loss

    model.make_optimizer = lambda module: Recorder([p for p in module.parameters() if p.requires_grad], lr=0.0)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Fit(batches))
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kinds", [["tt"], ["tt", "t"], ["ht", "tt"], ["s"]], ids=" ".join)
def test_parts_that_nobody_asks_for_have_no_gradient_whether_they_take_part_or_not(kinds):
    """A gradient of zero is another step: the optimizer's momentum and decay would move what heard nothing."""
    batches = [tiny_batch(tiny_model(), which) for which in kinds]
    (alone,), (among,) = (train(batches, len(batches), takes_part=part) for part in (False, True))
    assert alone.keys() == among.keys()
    assert any(name.startswith("adaptor.") for name in alone) == ("h" in "".join(kinds))
    for name, gradient in alone.items():
        assert torch.allclose(gradient, among[name], atol=1e-7, rtol=1e-6), name


@pytest.mark.filterwarnings("ignore")
def test_micro_batches_equal_one_batch_and_the_short_last_window_counts():
    """Lightning averages micro-batch means; we divide once by the step's target frames."""
    model = tiny_model()
    whole = tiny_batch(model, "hsth")
    pieces = [tiny_batch(model, kinds) for kinds in ("hsth", "hsth")]
    one = train([whole], accumulate=1)[0]
    two = train(pieces, accumulate=2)
    assert len(two) == 1
    for name, gradient in one.items():
        assert torch.allclose(gradient, two[0][name], atol=1e-6, rtol=1e-5), name
    # three micro-batches, two per window: the last window holds one and must give the same gradient again
    short = train([*pieces, whole], accumulate=2)
    assert len(short) == 2
    for name, gradient in one.items():
        assert torch.allclose(gradient, short[1][name], atol=1e-6, rtol=1e-5), name


@pytest.mark.filterwarnings("ignore")
def test_unequal_micro_batches_weigh_by_their_targets():
    """The official code weighs micro-batches equally, whatever their token counts."""
    model = tiny_model()
    small, large = tiny_batch(model, "t"), tiny_batch(model, "hshs")
    together = train([small, large], accumulate=2)[0]
    expected = {}
    total = small.num_targets + large.num_targets
    for batch in (small, large):
        model.zero_grad()
        model(batch).total.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, 0) + parameter.grad / total
    for name, gradient in expected.items():
        assert torch.allclose(gradient, together[name], atol=1e-6, rtol=1e-5), name


def test_frozen_parts_stay_in_eval_mode():
    """In the official code model.train() reaches the frozen codec: its dropout changes 80 % of the target codes."""
    model = tiny_model()
    model.encoder.requires_grad_(False)
    model.train()
    assert model.llm.training and not model.codec.training and not model.encoder.training
    assert not any(module.training for module in model.codec.modules())
    model.eval().train()
    assert not model.codec.training and model.adaptor.training


def test_metrics_per_group():
    model = tiny_model()
    metrics = model(tiny_batch(model, "hs")).metrics
    assert {"loss", "loss/text", "loss/codebook0", "loss/codebook1", "accuracy/codebook1"} <= set(metrics)
    model.meter.add(metrics)
    model.meter.add(metrics)
    means = model.meter.take()
    assert means["loss/text"] == pytest.approx(float(metrics["loss/text"][0] / metrics["loss/text"][1]))
    assert model.meter.take() == {}


@pytest.mark.parametrize("tied", [False, True])
def test_meta_built_and_loaded_equals_normally_built(tied, tmp_path):
    """Every buffer included: rotary frequencies, filterbanks and windows are in no checkpoint."""
    from bagpiper.recipe.settings import GenerationSettings
    from bagpiper.weights.model_folder import load_model, save_model

    model = tiny_model(llm={"tie_word_embeddings": tied})
    save_model(model, tmp_path / "model", generation=GenerationSettings())
    loaded = load_model(tmp_path / "model")
    own, other = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert own.keys() == other.keys()
    for name, buffer in own.items():
        assert torch.equal(buffer, other[name]), name
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert torch.equal(parameter, dict(loaded.named_parameters(remove_duplicate=False))[name]), name
    assert (loaded.output_rows.text is loaded.input_rows.text) == tied
    batch = tiny_batch(model, "hst")
    assert torch.equal(model(batch).total, loaded(batch).total)


def test_a_model_folder_is_replaced_whole(tmp_path):
    """Saving again over a folder leaves the new model and nothing beside it."""
    from bagpiper.recipe.settings import GenerationSettings
    from bagpiper.weights.model_folder import load_model, save_model

    for seed in (0, 1):
        save_model(tiny_model(seed), tmp_path / "model", generation=GenerationSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert torch.equal(load_model(tmp_path / "model").adaptor.hidden.weight, tiny_model(1).adaptor.hidden.weight)


def test_frame_dropout_hides_target_frames_from_the_input_while_training_only():
    model = tiny_model()
    batch = tiny_batch(model, "sth")
    whole = model.embed(batch.ids, batch.slots, batch.waves)
    model.frame_dropout = 1.0
    seen = []
    model.llm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    model.train()
    model(batch)
    model.eval()
    model(batch)
    frames = (batch.ids[:, 0] >= model.vocabulary.audio_start) & (batch.weights[:, 0] > 0)
    assert 0 < frames.sum() < len(batch)
    assert not seen[0][frames].any()
    assert torch.equal(seen[0][~frames], whole[~frames])
    assert torch.equal(seen[1], whole)
