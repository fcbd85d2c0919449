"""One-shot tuning: what moves, what is learnt, kill and resume, numerics."""

import json
import math
from dataclasses import replace

import pytest
import torch

from ctxedit.config import AdapterConfig, AttentionConfig, TuneConfig
from ctxedit.errors import ConfigError, NumericsError
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import load_backbone
from ctxedit.models.shift import ContextShift
from ctxedit.patterns import attended_frames
from ctxedit.stages.tune import _loss, load_tensors, trainable, tune

F, SIDE = 2, (8, 8)
VIEW = FrameView(attended_frames(AttentionConfig(), F), SIDE)
X = torch.randn(F, 4, *SIDE, generator=torch.Generator().manual_seed(0))
ALL = TuneConfig(
    steps=8,
    lr=1e-3,
    save_every=3,
    trainable_modules=("attn1.to_q", "attn2", "temporal", "adapter"),
    gradient_checkpointing=False,
)


class Bench:
    """A fresh network, adapter and temporal layers: the same every time."""

    def __init__(self, folder, adapter=True, temporal=True, dtype=torch.float32):
        self.backbone = load_backbone(str(folder), torch.device("cpu"), dtype)
        self.context = self.backbone.embed(["a tiger walking on the beach"])
        self.temporal = self.shift = None
        if adapter:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                net = ContextAdapter(
                    AdapterConfig(width=32, blocks=1, heads=4), 4, self.backbone.context_width
                )
            self.shift = ContextShift(net.requires_grad_(False), self.context, F)
        if temporal:
            self.temporal = self.backbone.temporal_layers().requires_grad_(False)

    def tune(
        self, config, folder, seed=0, report=lambda row: None, latents=X, warn=lambda text: None
    ):  # fmt: skip
        b = self.backbone
        with b.attention(AttentionConfig()):
            return tune(
                b, latents, self.context, VIEW, config, folder, seed, self.shift, self.temporal, report,
                warn=warn,
            )  # fmt: skip

    def loss(self, config, step=0, x=X):
        with self.backbone.attention(AttentionConfig()), torch.no_grad():
            return _loss(self.backbone, x, self.context, VIEW, config, self.shift, 0, step)

    def everything(self):
        """Every parameter, by name."""
        nets = {"unet": self.backbone.unet, "vae": self.backbone.vae, "text": self.backbone.text_encoder}
        nets |= {"adapter": self.shift.adapter} if self.shift else {}
        nets |= {"temporal": self.temporal} if self.temporal is not None else {}
        return {f"{n}.{k}": p for n, net in nets.items() for k, p in net.named_parameters()}


@pytest.fixture()
def bench(stable_diffusion):
    return Bench(stable_diffusion)


def log_of(folder):
    return [json.loads(row) for row in (folder / "log.jsonl").read_text().splitlines()]


class Killed(BaseException):
    """Stands for a kill: nothing in the code may catch it."""


def killer(at):
    def report(row):
        if row.step == at:
            raise Killed

    return report


class TestWhatMoves:
    def test_only_the_named_parameters_and_all_of_them(self, bench, tmp_path):
        before = {k: p.clone() for k, p in bench.everything().items()}
        tuned = bench.tune(replace(ALL, steps=4), tmp_path)
        moved = {k for k, p in bench.everything().items() if not torch.equal(p, before[k])}
        named = set(trainable(bench.backbone, ALL, bench.shift, bench.temporal))
        assert set(tuned) == named
        assert moved == named
        assert {k.split(".")[0] for k in moved} == {"unet", "adapter", "temporal"}
        assert any(".attn1.to_q." in k for k in moved)
        assert not any(".attn1.to_k." in k for k in moved)

    def test_gradient_reaches_the_adapter_through_x_t(self, bench, tmp_path):
        """The network is frozen: only through the latents it is shown can the adapter lower the loss."""
        config = replace(ALL, trainable_modules=("adapter",), steps=3)
        before = bench.shift.adapter.out.weight.clone()
        shares = []
        bench.tune(config, tmp_path, report=lambda row: shares.append(row.shift))
        assert not torch.equal(bench.shift.adapter.out.weight, before)
        assert shares[0] == 0.0
        assert shares[-1] > 0

    def test_the_adapter_may_have_its_own_rate(self, stable_diffusion, tmp_path):
        moved = []
        for i, rate in enumerate((0.0, 1e-2)):
            bench = Bench(stable_diffusion)
            bench.tune(replace(ALL, steps=1, adapter_lr=rate, weight_decay=0.0), tmp_path / str(i))
            moved.append(float(bench.shift.adapter.out.weight.abs().max()))
        assert moved[0] == pytest.approx(1e-3, rel=1e-2)  # Adam's first step is the rate
        assert moved[1] == pytest.approx(1e-2, rel=1e-2)

    def test_the_network_is_left_frozen_in_eval_mode_and_in_its_precision(self, stable_diffusion, tmp_path):
        bench = Bench(stable_diffusion, dtype=torch.bfloat16)
        bench.tune(replace(ALL, steps=1, gradient_checkpointing=True), tmp_path)
        assert {p.dtype for p in bench.backbone.unet.parameters()} == {torch.bfloat16}
        assert bench.backbone.dtype == torch.bfloat16
        assert not any(p.requires_grad for p in bench.everything().values())
        assert not any(getattr(m, "gradient_checkpointing", False) for m in bench.backbone.unet.modules())

    @pytest.mark.parametrize("train", [("attn3",), ("adaptor",), ("attn1", "attn")])
    def test_an_unknown_name_is_refused(self, bench, tmp_path, train):
        with pytest.raises(ConfigError, match=r"tune\.trainable_modules"):
            bench.tune(replace(ALL, trainable_modules=train), tmp_path)
        assert not any(tmp_path.iterdir())

    def test_temporal_layers_that_are_not_there_are_refused(self, stable_diffusion, tmp_path):
        with pytest.raises(ConfigError, match="temporal"):
            Bench(stable_diffusion, temporal=False).tune(ALL, tmp_path)

    def test_an_adapter_that_is_off_is_left_out(self, stable_diffusion, tmp_path):
        tuned = Bench(stable_diffusion, adapter=False).tune(replace(ALL, steps=1), tmp_path)
        assert not any(k.startswith("adapter") for k in tuned)

    @pytest.mark.parametrize("train", [(), ("adapter",)])
    def test_nothing_to_move_is_refused(self, stable_diffusion, tmp_path, train):
        with pytest.raises(ConfigError, match=r"tune\.trainable_modules"):
            Bench(stable_diffusion, adapter=False).tune(replace(ALL, trainable_modules=train), tmp_path)


class TestLoss:
    def test_it_goes_down(self, bench, tmp_path):
        config = replace(ALL, steps=60, lr=3e-3, trainable_modules=("attn1", "attn2", "conv_out", "adapter"))
        probe = [bench.loss(config, step)[0] for step in range(1000, 1010)]
        bench.tune(config, tmp_path)
        after = [bench.loss(config, step)[0] for step in range(1000, 1010)]
        print(f"loss {sum(probe) / 10:.3f} to {sum(after) / 10:.3f}")
        assert sum(after) < 0.9 * sum(probe)
        assert sum(r["loss"] for r in log_of(tmp_path)[-20:]) < sum(r["loss"] for r in log_of(tmp_path)[:20])

    @pytest.mark.parametrize("head", ["stable_diffusion", "stable_diffusion_2"])
    def test_snr_weight_makes_it_the_plain_noise_prediction_loss(self, head, request):
        bench = Bench(request.getfixturevalue(head), adapter=False, temporal=False)
        b = bench.backbone
        for step in range(4):
            loss, share = bench.loss(ALL, step)
            # The same draws, and the loss as every noise-prediction trainer writes it.
            generator = torch.Generator().manual_seed(step)
            t = int(torch.randint(0, 1000, (), generator=generator))
            noise = torch.randn(X.shape, generator=generator)
            bar = b.alphas_cumprod[t].float()
            x = bar.sqrt() * X + (1 - bar).sqrt() * noise
            with b.attention(AttentionConfig()), torch.no_grad():
                out = b.raw(x, t, bench.context, VIEW)
            eps = out if b.prediction == "epsilon" else bar.sqrt() * out + (1 - bar).sqrt() * x
            torch.testing.assert_close(loss, ((eps - noise) ** 2).mean(), rtol=2e-3, atol=1e-5)
            assert share == 0

    def test_with_a_shift_the_network_shall_predict_the_effective_noise(self, stable_diffusion):
        """λ_t ‖x̂_0 − x_0‖² at λ = ᾱ/(1 − ᾱ) is ‖ε̃_θ − (ε + b_t/√(1 − ᾱ))‖²."""
        bench = Bench(stable_diffusion, temporal=False)
        torch.nn.init.normal_(bench.shift.adapter.out.weight)
        b = bench.backbone
        for step in range(4):
            loss, share = bench.loss(ALL, step)
            generator = torch.Generator().manual_seed(step)
            t = int(torch.randint(0, 1000, (), generator=generator))
            noise = torch.randn(X.shape, generator=generator)
            a, s = (v.sqrt().float() for v in (b.alphas_cumprod[t], 1 - b.alphas_cumprod[t]))
            with b.attention(AttentionConfig()), torch.no_grad():
                shift = a * (1 - a) * bench.shift.adapter(X, bench.context, t, F)
                out = b.raw(a * X + shift + s * noise, t, bench.context, VIEW)
            torch.testing.assert_close(loss, ((out - noise - shift / s) ** 2).mean(), rtol=2e-3, atol=1e-5)
            assert share == pytest.approx(float(shift.norm() / (a * X).norm()), rel=1e-4)
            assert share > 0

    def test_other_weights(self, bench):
        values = {w: float(bench.loss(replace(ALL, loss_weight=w), 1)[0]) for w in ("snr", "one", "min_snr")}
        generator = torch.Generator().manual_seed(1)
        bar = float(bench.backbone.alphas_cumprod[int(torch.randint(0, 1000, (), generator=generator))])
        assert values["snr"] == pytest.approx(values["one"] * bar / (1 - bar), rel=1e-5)
        assert values["min_snr"] == pytest.approx(values["one"] * min(5, bar / (1 - bar)), rel=1e-5)

    def test_gradient_checkpointing_gives_the_same_losses_and_weights(self, stable_diffusion, tmp_path):
        runs = []
        for on in (False, True):
            bench, folder = Bench(stable_diffusion), tmp_path / str(on)
            runs.append(
                (bench.tune(replace(ALL, steps=3, gradient_checkpointing=on), folder), log_of(folder))
            )
        for a, b in zip(runs[0][1], runs[1][1], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        for name, value in runs[0][0].items():
            torch.testing.assert_close(value, runs[1][0][name], rtol=1e-3, atol=1e-4)

    def test_the_seed_says_the_draws(self, stable_diffusion, tmp_path):
        losses = []
        for i, seed in enumerate((1, 1, 2)):
            Bench(stable_diffusion).tune(replace(ALL, steps=2), tmp_path / str(i), seed)
            losses.append([row["loss"] for row in log_of(tmp_path / str(i))])
        assert losses[0] == losses[1] != losses[2]


@pytest.fixture(scope="module")
def unbroken(stable_diffusion, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return Bench(stable_diffusion).tune(ALL, folder), log_of(folder)


class TestKillAndResume:
    @pytest.mark.parametrize("kills", [(2,), (3,), (5,), (8,), (1, 4, 5)])
    def test_it_equals_an_unbroken_run_bit_for_bit(self, stable_diffusion, tmp_path, unbroken, kills):
        for at in kills:
            with pytest.raises(Killed):
                Bench(stable_diffusion).tune(ALL, tmp_path, report=killer(at))
        steps = []
        tuned = Bench(stable_diffusion).tune(ALL, tmp_path, report=lambda row: steps.append(row.step))
        assert set(tuned) == set(unbroken[0])
        assert all(torch.equal(tuned[k], v) for k, v in unbroken[0].items())
        # It went on from the last save (a step is told before it is saved); the log has every step once.
        assert steps == list(range((kills[-1] - 1) // 3 * 3 + 1, 9))
        assert log_of(tmp_path) == unbroken[1]
        assert [row["step"] for row in log_of(tmp_path)] == list(range(1, 9))

    def test_a_finished_tuning_is_not_done_again(self, stable_diffusion, tmp_path, unbroken):
        Bench(stable_diffusion).tune(ALL, tmp_path)
        rows = []
        tuned = Bench(stable_diffusion).tune(ALL, tmp_path, report=rows.append)
        assert rows == []
        assert all(torch.equal(tuned[k], v) for k, v in unbroken[0].items())

    def test_a_row_cut_off_by_the_kill_is_dropped(self, stable_diffusion, tmp_path, unbroken):
        with pytest.raises(Killed):
            Bench(stable_diffusion).tune(ALL, tmp_path, report=killer(4))
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write('{"step": 5, "lo')
        Bench(stable_diffusion).tune(ALL, tmp_path)
        assert log_of(tmp_path) == unbroken[1]

    @pytest.mark.parametrize("damage", ["empty", "half", "changed", "another"])
    def test_a_damaged_state_is_begun_anew_with_a_word(self, stable_diffusion, tmp_path, unbroken, damage):
        with pytest.raises(Killed):
            Bench(stable_diffusion).tune(ALL, tmp_path, report=killer(5))
        state, said, steps = tmp_path / "state.pt", [], []
        blob = bytearray(state.read_bytes())
        saved = torch.load(state, weights_only=True)
        at = blob.find(next(iter(saved["parameters"].values())).numpy().tobytes()[:64])
        assert at > 0
        blob[at + 1] ^= 1
        if damage == "another":
            torch.save({**saved, "step": 1}, state)
        else:
            state.write_bytes({"empty": b"", "half": blob[: len(blob) // 2], "changed": blob}[damage])
        tuned = Bench(stable_diffusion).tune(
            ALL, tmp_path, report=lambda row: steps.append(row.step), warn=said.append
        )
        assert steps == list(range(1, 9)) and len(log_of(tmp_path)) == 8
        assert len(said) == 1 and "starts over" in said[0] and "state.pt" in said[0]
        assert all(torch.equal(tuned[k], v) for k, v in unbroken[0].items())

    def test_a_state_of_other_parameters_is_refused(self, stable_diffusion, tmp_path):
        Bench(stable_diffusion).tune(replace(ALL, steps=1), tmp_path)
        with pytest.raises(ConfigError, match="do not fit"):
            Bench(stable_diffusion).tune(replace(ALL, trainable_modules=("attn2",)), tmp_path)


class TestNumerics:
    def break_at(self, bench, step):
        def report(row):
            if row.step == step:
                next(iter(bench.temporal.parameters())).data.fill_(math.nan)

        return report

    def test_nan_stops_and_the_earlier_state_stays(self, stable_diffusion, tmp_path):
        bench = Bench(stable_diffusion)
        with pytest.raises(NumericsError, match="the loss is nan at step 4") as error:
            bench.tune(ALL, tmp_path, report=self.break_at(bench, 4))
        assert error.value.exit_code == 7
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert state["step"] == 3
        assert all(v.isfinite().all() for v in state["parameters"].values())
        # Another try goes on from there.
        tuned = Bench(stable_diffusion).tune(ALL, tmp_path)
        assert all(v.isfinite().all() for v in tuned.values())

    def test_weights_that_are_not_finite_are_never_saved(self, stable_diffusion, tmp_path):
        """The loss of the last step before a save may be finite and its gradient not."""
        bench = Bench(stable_diffusion)
        config = replace(ALL, max_grad_norm=0.0, trainable_modules=("temporal",))
        parameter = next(iter(bench.temporal.tuned_parameters(False).values()))
        calls = []

        def spoil(gradient):
            calls.append(1)
            return gradient * math.nan if len(calls) == 6 else gradient

        parameter.requires_grad_(True)
        parameter.register_hook(spoil)
        with pytest.raises(NumericsError):
            bench.tune(config, tmp_path)
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert state["step"] == 3
        assert all(v.isfinite().all() for v in state["parameters"].values())

    def test_nan_in_the_latents(self, bench, tmp_path):
        with pytest.raises(NumericsError, match="step 0"):
            bench.tune(ALL, tmp_path, latents=X * math.nan)


def test_load_tensors_wants_the_same_names():
    here = {"a": torch.nn.Parameter(torch.zeros(2)), "b": torch.nn.Parameter(torch.zeros(1))}
    load_tensors(here, {"a": torch.ones(2), "b": torch.ones(1)})
    assert torch.equal(here["a"], torch.ones(2))
    with pytest.raises(ConfigError, match="b"):
        load_tensors(here, {"a": torch.ones(2)})
    with pytest.raises(ConfigError):
        load_tensors(here, {"a": torch.ones(3), "b": torch.ones(1)})
