"""Bytes at URIs: ``filesystems``, one call for every cloud; ``masking``, what people may see."""
