"""TED-LIUM release 2: talks, 207 hours."""
