"""The two towers of CLIP and the table of published shapes."""
