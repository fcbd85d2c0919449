"""Training of the built-in models: one loop, one task a part, a TOML recipe for each."""
