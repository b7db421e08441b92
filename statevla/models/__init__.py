"""Networks: tokenizer, Mamba encoder, predictor, policies."""
