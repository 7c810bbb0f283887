//! The only room with `unsafe` code: what the kernel or another program gives us in a form that no safe interface takes.
//!
//! Each `unsafe` says why it is sound. What leaves this room is safe to use whatever the caller does.

#![allow(unsafe_code, reason = "its purpose: everything else of the program has none")]

pub(crate) mod bpf;
pub(crate) mod control;
pub(crate) mod datagrams;
pub(crate) mod fds;
pub(crate) mod sockopt;
