"""Bytes at URIs: ``filesystems``, one call for every cloud; ``masking``, what people may see.

All that asks a store raises StoreError where it refuses or cannot be reached.
"""
