"""Clips of a batch do not hear each other: the one check that every encoder and every adaptor passes."""

from __future__ import annotations

from collections.abc import Callable

import torch

DISTURBANCES = (0.5, float("nan"))

Tensors = list[torch.Tensor]


def check_isolation(module: Callable[[Tensors], Tensors], clips: Tensors, disturbed: int, disturbance: float) -> None:
    """Change one clip of a batch: the others keep every bit of output and gradient; each is itself alone, to rounding.

    Args:
        module: takes and returns a list of clips.
        clips: the batch.
        disturbed: index of the clip that changes.
        disturbance: added to it, backwards; NaN shows what a weight of zero hides.
    """
    # turned round, too: encoders may take a clip's mean away
    changed = [clip.flip(0) + disturbance if index == disturbed else clip for index, clip in enumerate(clips)]
    results = []
    for batch in (clips, changed):
        leaves = [clip.clone().requires_grad_() for clip in batch]
        outputs = module(leaves)
        sum(output.pow(3).sum() for output in outputs).backward()
        results.append((outputs, [leaf.grad for leaf in leaves]))
    (outputs, gradients), (outputs_now, gradients_now) = results
    for index, clip in enumerate(clips):
        torch.testing.assert_close(module([clip])[0], outputs[index], rtol=0, atol=1e-5)
        if index != disturbed:
            assert torch.equal(outputs[index], outputs_now[index]), f"clip {index} hears clip {disturbed}"
            assert torch.equal(gradients[index], gradients_now[index]), f"clip {index} learns from clip {disturbed}"
    assert not torch.equal(outputs[disturbed], outputs_now[disturbed])
