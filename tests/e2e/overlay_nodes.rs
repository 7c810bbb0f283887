//! Nodes that leave, return and die, and a store that is gone for a minute: what containers notice of it.
