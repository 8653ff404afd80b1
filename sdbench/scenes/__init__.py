"""The embedded family `scenes`: captions of known meaning, a renderer for them, and small networks."""
