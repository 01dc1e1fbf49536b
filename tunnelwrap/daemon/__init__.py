"""Composition roots: the one place where core, transports, data plane and host meet."""
