"""The real engine: transformers models on a paged KV pool. Only here are torch and transformers imported."""
