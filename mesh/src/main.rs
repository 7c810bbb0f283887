//! The program `plexus`: calls the command line and maps errors to exit codes.
fn main() {}
