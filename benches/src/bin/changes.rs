//! `changes [use|rate|watchers]…`: see `plexus_benches::changes`.

fn main() -> anyhow::Result<()> {
    plexus_benches::changes::run(&std::env::args().skip(1).collect::<Vec<_>>())
}
