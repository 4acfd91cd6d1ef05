"""Finished runs for people: tables, figures, films."""
