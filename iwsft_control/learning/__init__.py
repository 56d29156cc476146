"""What all methods share: objectives, curation, the temporal-difference loss, the training loop."""
