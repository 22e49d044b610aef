//! From CRI messages to the model: the only part of the model that sees the wire.
