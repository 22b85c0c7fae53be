"""Guests: codecs and task models that run in a Python interpreter of their own, with libraries of their own."""
