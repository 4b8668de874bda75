"""Submitting the commands to a Ray cluster; sends commands as text and imports none of our code."""
