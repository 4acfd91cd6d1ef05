"""The federation: rounds of clients as one program, who takes part, how messages are joined, where all runs."""
