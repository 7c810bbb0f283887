//! Balancers side by side; see `benches/README.md`.

fn main() -> anyhow::Result<()> {
    plexus_benches::side_by_side::main()
}
