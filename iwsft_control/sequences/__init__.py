"""The same objectives on token sequences: a verifiable task, a small causal transformer, and what fine-tunes it."""
