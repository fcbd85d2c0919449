"""One preset on many clips: the report of a batch. The clips are served as those of a comparison are."""
