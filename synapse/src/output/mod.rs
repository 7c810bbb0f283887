//! Outputs: what other programs of this node are told of the catalog, in their own form.

pub mod haproxy;
