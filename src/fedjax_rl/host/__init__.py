"""This process and its machine: exit codes, files, streams, signals, cores, the other processes of a run."""
