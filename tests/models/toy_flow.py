"""A whole backbone family in one file: pixels as latents, a velocity (flow) head, timesteps tau in (0, 1]."""

import json
import math
import re
import zlib

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from torch import nn

from ctxedit.diffusion.schedule import Levels
from ctxedit.errors import WeightsError
from ctxedit.models.backbones.base import Backbone
from ctxedit.models.conditioning import Condition
from ctxedit.models.families import register
from ctxedit.models.sites import AttentionSite
from ctxedit.models.sizes import Sizes, Weight, folder_weight

WIDTH, LENGTH = 16, 12
SITES = (AttentionSite("attn1", "self", 0, WIDTH), AttentionSite("attn2", "cross", 0, WIDTH))


class Velocity(nn.Module):
    """``eps - x_0`` of RGB frames, told tau and the text."""

    def __init__(self):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 3, 1)
        self.time = nn.Linear(2, WIDTH)
        self.attn1 = Attention(WIDTH, heads=2, dim_head=8)
        self.attn2 = Attention(WIDTH, cross_attention_dim=WIDTH, heads=2, dim_head=8)
        self.checkpoint = None

    def forward(self, x, tau, tokens):
        angle = torch.as_tensor(tau, dtype=x.dtype) * (math.pi / 2)
        hidden = self.conv_in(x).flatten(2).transpose(1, 2) + self.time(
            torch.stack([angle.sin(), angle.cos()])
        )
        for layer, context in ((self.attn1, None), (self.attn2, tokens)):
            call = layer if self.checkpoint is None else lambda *a, f=layer: self.checkpoint(f, *a)
            hidden = hidden + call(hidden, context)
        return self.conv_out(hidden.transpose(1, 2).unflatten(2, x.shape[-2:]))

    def enable_gradient_checkpointing(self, function):
        self.checkpoint = function

    def disable_gradient_checkpointing(self):
        self.checkpoint = None


@register("ToyFlowPipeline")
class ToyFlow(Backbone):
    networks_in, others_in = ("net",), ()

    def __init__(self, checkpoint, device, dtype):
        self.name, self.path, self.builtin = checkpoint.name, checkpoint.path, False
        self.device, self.dtype, self.control = device, dtype, None
        self.prediction = "flow"
        self.factor = self.multiple = 1
        self.resolution, self.latent_channels = 16, 3
        self.context_width, self.context_length = WIDTH, LENGTH
        self.net = Velocity().to(device, dtype)
        self.net.load_state_dict(load_file(checkpoint.path / "net" / "model.safetensors"))
        self.net.eval().requires_grad_(False)

    @classmethod
    def open(cls, checkpoint, device, dtype, offload=False):
        return cls(checkpoint, device, dtype)

    @classmethod
    def check(cls, checkpoint):
        if json.loads((checkpoint.path / "model_index.json").read_text()).get("broken"):
            raise WeightsError(f"{checkpoint.name} is broken", "mend it")

    @classmethod
    def sizes(cls, checkpoint):
        net = folder_weight(checkpoint.path / "net")
        return Sizes(net, Weight(), Weight(), (WIDTH,), (1,), 1, (3,), 3, WIDTH, LENGTH, 16, SITES)

    @classmethod
    def check_prompts(cls, checkpoint, texts):
        pass

    def encode(self, frames, chunk=4):
        return torch.from_numpy(frames).permute(0, 3, 1, 2).to(self.dtype) / 127.5 - 1

    def decode(self, latents, chunk=4):
        pixels = ((latents.float().clamp(-1, 1) + 1) * 127.5).round()
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def token_spans(self, text):
        return [m.span() for m in re.finditer(r"\w+|[^\w\s]", text)]

    def condition(self, texts):
        rows = []
        for text in texts:
            words = [text[a:b] for a, b in self.token_spans(text)][: LENGTH - 2]
            row = [np.random.default_rng(zlib.crc32(w.encode())).normal(size=WIDTH) for w in ["<", *words]]
            rows.append(np.stack(row + [np.zeros(WIDTH)] * (LENGTH - len(row))))
        return Condition(torch.from_numpy(np.stack(rows)).to(self.dtype))

    def levels(self, steps):
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return Levels(timesteps=tau[1:].flip(0), alpha=1 - tau, sigma=tau)

    def training_level(self, generator):
        tau = torch.rand((), generator=generator, dtype=torch.float64).clamp(0.01, 0.99)
        return float(tau), 1 - tau, tau

    @property
    def networks(self):
        return (self.net,)

    def attention_sites(self, network):
        return SITES

    def raw(self, x, timestep, condition, view):
        rows = Condition.of(condition).for_frames(view.frames).to(self.dtype)
        with view.in_effect():
            return self.net(x.to(self.dtype), timestep, rows.tokens).to(x.dtype)


def make(folder):
    """A checkpoint of random weights."""
    (folder / "net").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "ToyFlowPipeline"}')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(Velocity().state_dict(), folder / "net" / "model.safetensors")
    return folder
