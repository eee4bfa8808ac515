"""Formats of the registry world: references, media types, manifests and the Kitfile. Pure: bytes in, values out."""
