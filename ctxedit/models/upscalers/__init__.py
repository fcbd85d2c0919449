"""Super-resolution of frames: the pixel-space model that ctxedit trains, and diffusers' x4 upscalers."""
