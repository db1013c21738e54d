"""Students and teachers: stateless flax.linen modules, images [b, h, w, c] -> logits [b, classes]."""
