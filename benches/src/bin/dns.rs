//! `dns [--names N,…] [--rounds N] [--seconds N] [--servers NAME,…]`: see `plexus_benches::dns`.

fn main() -> anyhow::Result<()> {
    plexus_benches::dns::run(&std::env::args().skip(1).collect::<Vec<_>>())
}
