"""The two encoders and the table of published shapes."""
