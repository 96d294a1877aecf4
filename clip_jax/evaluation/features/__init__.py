"""The features of images and texts: their extraction, and a cache on disk."""
