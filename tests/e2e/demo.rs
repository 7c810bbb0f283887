//! The demo: what a newcomer sees, typed as it is printed.
