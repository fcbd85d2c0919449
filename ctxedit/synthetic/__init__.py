"""The small world that the built-in models know: drawn scenes with exact captions and masks."""
