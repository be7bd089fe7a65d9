"""What several attacks need: other prompts, changed hidden states, an adapter on top of the model, and a budget for tuning."""
