//! Balancers side by side; see `benches/README.md`.

fn main() -> std::process::ExitCode {
    plexus_benches::side_by_side::main()
}
