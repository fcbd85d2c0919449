"""The drawn world that the built-in models are trained on: scenes with exact captions and masks."""
