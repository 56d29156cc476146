"""Online fine-tuning: UFT, Prefix-RFT and what they are compared with. It queries a reward; the rest never does."""
