"""A run on the disk: assembled, brought to its end, recorded, saved, evaluated."""
