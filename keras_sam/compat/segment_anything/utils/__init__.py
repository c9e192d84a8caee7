"""Meta's `segment_anything.utils`: `transforms` and `amg`."""
