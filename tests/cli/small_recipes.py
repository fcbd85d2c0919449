"""Recipes for a few steps on the CPU."""

#: Small settings of every part, for a few steps on the CPU.
TASKS = {
    "autoencoder": "channels = [8, 16, 16]\nlayers = 1\nkl = 1e-5\nedges = 1.0",
    "clip": "width = 32\nlayers = 1\nheads = 2\npatch = 8",
    "decoder": "edges = 1.0\nssim = 0.1",
    "captioner": "width = 32\nlayers = 1\npatch = 8",
    "denoiser": "channels = [16, 32]\nlayers = 1\nhead = 16\nattend = [true, true]\nfocus = 4.0",
    "adapter": "train = []\n[task.adapter]\nwidth = 32\nblocks = 1\nheads = 2\nbound = 0.1",
}


def write_recipe(folder, part, task=None, steps=2, data=""):
    """A recipe of a part in ``folder``; returns its path."""
    schedule = f"steps = {steps}\nbatch = 4\nlr = 1e-3\nwarmup = 1\nworkers = 0"
    path = folder / f"my-{part}.toml"
    path.write_text(
        f'part = "{part}"\n[task]\n{task or TASKS[part]}\n[schedule]\n{schedule}\n[data]\n{data}\n'
    )
    return path
