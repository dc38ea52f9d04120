"""One file per suite: a `Suite`, or several."""
