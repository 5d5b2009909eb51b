"""The networks of plug-ins, and what each adds to a run of the DiT: one plug-in, one file."""
