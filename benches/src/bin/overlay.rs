//! `overlay [tunnel|peers|joins]…`: see `plexus_benches::overlay`.

fn main() -> anyhow::Result<()> {
    plexus_benches::overlay::run(&std::env::args().skip(1).collect::<Vec<_>>())
}
