"""`import fedjax_rl`: train, sweep and open runs from Python. The same runs, files and numbers as the command's."""
