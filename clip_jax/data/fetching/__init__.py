"""Fetches the images of a list of URLs, politely and within limits."""
