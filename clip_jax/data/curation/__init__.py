"""Makes a collection of image-text pairs as CLIP's was made (section 2.2)."""
