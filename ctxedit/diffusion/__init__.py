"""Contextualized diffusion as free functions over tensors: no I/O, no networks, no state.

    schedule          which noise levels there are, and which of them are used
    forward           data to noise: marginal, single step, the shift's scale
    posterior         one step back: Bayes' posterior and ancestral sampling
    ddim              deterministic steps, down (sampling) and up (inversion)
    multistep         steps of second order: what to hand to ddim
    parameterization  noise, velocity or x0: what a network's output means, and the loss weight
    guidance          classifier-free guidance
    likelihood        the terms of the variational bound
    broadcast         how a level meets a batch

The one idea: subtract the shift, ``y_t = x_t - b_t``, and ``y`` is an ordinary diffusion. Every kernel here
is the ordinary kernel on ``y``, shifted back. A level is a pair ``(alpha, sigma)``: ``sqrt(alpha_bar)`` and
``sqrt(1 - alpha_bar)`` for a variance-preserving model, ``1 - tau`` and ``tau`` for a flow model.

Equation numbers are those of *Cross-Modal Contextualized Diffusion Models for Text-Guided Visual Generation
and Editing* (ICLR 2024), with its misprints corrected.
"""
