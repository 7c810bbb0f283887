//! End-to-end tests: several real nodes, a real store, the program as it ships, driven from outside.

mod harness;
