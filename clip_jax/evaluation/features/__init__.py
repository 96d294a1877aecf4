"""The features of images and texts: extraction, a cache on disk, nearest."""
