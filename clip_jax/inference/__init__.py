"""A model in use: reference to arrays, images and texts to features."""
