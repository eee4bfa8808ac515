"""Layers: what is in one, and the bytes of one member without unpacking the rest.

`indexer` passes over a layer's bytes once while they are stored; `reader` serves members from the store afterwards;
`lazy_layer` decodes spans of a gzip layer, `materialise` a whole layer into member files. Import, pull and pack use the
first, the mount the others.
Nothing here knows a ModelKit, a network or FUSE, and no byte leaves that no digest or checksum vouches for.
"""
