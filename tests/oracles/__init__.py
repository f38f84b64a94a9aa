"""Reference implementations that share nothing with the compiler: plain PyTorch, written from the
published mathematics, that remove tokens *inside* the model instead of rewriting a graph."""
