"""The comparison: presets side by side on a list of clips and targets."""
