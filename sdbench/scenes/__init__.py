"""The embedded family's world: captions whose truth is known, and a renderer for them."""
