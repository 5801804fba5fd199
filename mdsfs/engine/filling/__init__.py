"""Bringing what is absent: flights from a claim of room to their landing, for readers and ahead of them."""
