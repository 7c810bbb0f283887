//! What the catalog is turned into for other programs on this node, in their own form. Nothing of the mesh reads it.

mod file;
pub mod haproxy;
mod writing;

pub use file::{Files, Target};
