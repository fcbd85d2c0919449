"""One preset on many clips: the report of a batch. Its clips are processed like those of a comparison."""
