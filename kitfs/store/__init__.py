"""The store: blobs, members, the LMDB index, leases, sessions, garbage collection and checks.

The only package that imports ``lmdb`` and the only one that writes below a store's home. It knows nothing of
archives, compressors, FUSE or the network. ``kitfs.store.store.Store`` is the way in.
"""
