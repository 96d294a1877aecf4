"""Draws charts and writes the HTML pages of training, evaluation and search."""
