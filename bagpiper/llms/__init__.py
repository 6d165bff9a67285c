"""Language models without their vocabulary matrices, and their tokenizers."""
