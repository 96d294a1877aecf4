"""Pairs of images and texts: where they come from, and how they are batched."""
