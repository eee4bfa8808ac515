"""Tar archives as pure functions of bytes: reading their table of contents, writing their headers.

The layer package and the packer use it. Nothing here opens a file, knows a digest or decompresses; bytes come in,
members and bytes go out, and every refusal is a `TarMalformed` or a `MemberUnwritable`. Objects are for one
thread at a time.
"""
