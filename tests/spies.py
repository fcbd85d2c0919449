"""What really happens in the networks of a session, seen from outside: by hooks, not by settings."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctxedit.editing.reporter import Reporter


class Phases(Reporter):
    """Which stage is running."""

    now = ""

    @contextmanager
    def task(self, name, total, unit="step"):
        self.now = name.split()[0]
        try:
            yield lambda done, note="": None
        finally:
            self.now = ""


@dataclass
class AttentionSpy:
    """Whose queries, keys and values met in one attention layer: compares what the kernel got with what the
    projections gave.

    Attributes:
        met: for each kernel call since ``clear``, the branches of (queries, keys, values); None: mixed.
        saw: pairs (frame, frame that it took keys from).
    """

    layer: torch.nn.Module
    frames: int
    met: list[tuple[int | None, int | None, int | None]] = field(default_factory=list)
    saw: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self):
        self.last: dict[str, Tensor] = {}
        for name in ("to_q", "to_k", "to_v"):
            getattr(self.layer, name).register_forward_hook(self._keeper(name))
        processor = self.layer.processor
        kernel = processor.kernel

        def spying(q, k, v):
            if v.shape[-1] == q.shape[-1] and self.last:
                self._look(q, k, v)
            return kernel(q, k, v)

        processor.kernel = spying

    def _keeper(self, name):
        def hook(module, args, out):
            self.last[name] = out.detach().unflatten(-1, (self.layer.heads, -1)).transpose(1, 2)

        return hook

    def _find(self, name: str, part: Tensor) -> int | None:
        """The index in the batch of what a projection gave; None when it is none of it."""
        gave = self.last[name]
        same = (gave == part).flatten(1).all(1).nonzero().flatten()
        return int(same[0]) if len(same) else None

    def _look(self, q, k, v):
        tokens = self.last["to_k"].shape[2]
        branches: list[int | None] = []
        for name, x in (("to_q", q), ("to_k", k), ("to_v", v)):
            at = self._find(name, x[0, :, : self.last[name].shape[2]])
            branches.append(None if at is None else at // self.frames)
        self.met.append(tuple(branches))
        if name_of_self(self.layer, self.last):
            for m in range(len(q)):
                i = self._find("to_q", q[m])
                for block in k[m].split(tokens, dim=1):
                    j = self._find("to_k", block)
                    if i is not None and j is not None:
                        self.saw.add((i % self.frames, j % self.frames))

    def clear(self):
        self.met, self.saw = [], set()


def name_of_self(layer, last) -> bool:
    """Whether a layer is self-attention: as many keys as queries."""
    return last["to_q"].shape[2] == last["to_k"].shape[2] and not layer.is_cross_attention


@dataclass
class Call:
    """One call of the denoiser."""

    phase: str
    timestep: int
    batch: int
    sample: Tensor
    words: Tensor
    residual: float | None
    self_met: list = field(default_factory=list)
    cross_met: list = field(default_factory=list)


class Spy:
    """Everything of a session that the tests ask about.

    Attributes:
        calls: of the denoiser, in order.
        control: of the ControlNet: (phase, batch).
        shifts: of the adapter: (phase, largest value of r).
        before: every parameter at the start.
    """

    def __init__(self, session):
        self.session, self.phases = session, Phases()
        session.reporter = self.phases
        backbone, frames = session.parts.backbone, session.config.clip.frames
        self.calls: list[Call] = []
        self.control: list[tuple[str, int]] = []
        self.shifts: list[tuple[str, float]] = []
        layers = dict(backbone.unet.named_modules())
        # Not the first: what has not met a word yet is the same in both branches of guidance.
        at = "down_blocks.1.attentions.0.transformer_blocks.0."
        self.self_attention = AttentionSpy(layers[f"{at}attn1"], frames)
        self.cross_attention = AttentionSpy(layers[f"{at}attn2"], frames)
        self.narrow_attention = AttentionSpy(layers[f"{at.replace('.1.', '.0.', 1)}attn1"], frames)
        backbone.unet.register_forward_pre_hook(self._denoiser, with_kwargs=True)
        if backbone.control is not None:
            net = backbone.control.net
            self.control_attention = AttentionSpy(dict(net.named_modules())[f"{at}attn1"], frames)
            net.register_forward_pre_hook(
                lambda m, args, kwargs: self.control.append((self.phases.now, len(args[0]))),
                with_kwargs=True,
            )
        shift = session.parts.shift("a tiger")
        self.adapter = None if shift is None else shift.adapter
        if self.adapter is not None:
            self.adapter.register_forward_hook(
                lambda m, args, out: self.shifts.append((self.phases.now, float(out.detach().abs().max())))
            )
        self.before = {k: v.detach().clone() for k, v in self.parameters().items()}

    def _denoiser(self, module, args, kwargs):
        self._take()
        down = kwargs.get("down_block_additional_residuals")
        residual = None if down is None else max(float(d.detach().abs().max()) for d in down)
        self.calls.append(
            Call(
                self.phases.now, int(args[1]), len(args[0]), args[0].detach().clone(),
                args[2].detach().clone(), residual,
            )
        )  # fmt: skip

    def _take(self):
        """Give the attention of the call that has ended to it."""
        for spy, name in ((self.self_attention, "self_met"), (self.cross_attention, "cross_met")):
            if self.calls:
                setattr(self.calls[-1], name, spy.met)
            spy.met = []

    def parameters(self):
        """Every parameter of every network, by name."""
        s = self.session.parts
        nets = {"unet": s.backbone.unet, "vae": s.backbone.vae, "text": s.backbone.text_encoder}
        if s.backbone.control is not None:
            nets["controlnet"] = s.backbone.control.net
        if self.adapter is not None:
            nets["adapter"] = self.adapter
        if s.temporal is not None:
            nets["temporal"] = s.temporal
        return {f"{n}.{k}": p for n, net in nets.items() for k, p in net.named_parameters()}

    def moved(self):
        """Names of the parameters that are no longer what they were."""
        return {k for k, v in self.parameters().items() if not torch.equal(v, self.before[k])}

    def during(self, phase):
        """The denoiser's calls of a stage."""
        self._take()
        return [c for c in self.calls if c.phase == phase]
