"""The boxes of the paper's figures, one module each, as Keras layers."""
