//! What the catalog is turned into for other programs on this node. Nothing of the mesh reads it.

mod file;
mod writing;

pub use file::{Files, Target};
