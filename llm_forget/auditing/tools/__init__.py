"""What several attacks need: other prompts, changed hidden states, an adapter beside the model, and a budget for tuning."""
