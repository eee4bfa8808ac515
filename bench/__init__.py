"""Measurements and the demonstration. Uses kitfs as a user would; nothing in kitfs imports it.

``python -m bench CASE`` measures; ``python -m bench.demo`` shows.
"""
