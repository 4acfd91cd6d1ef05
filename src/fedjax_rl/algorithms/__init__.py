"""The algorithms, one short file each (`host/registry.py` has their names); `parts.py` is what they share."""
