"""What a transform ID computes; no state, no policy. Primitives come from ``cryptography``."""
