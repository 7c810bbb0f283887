//! The rules: what a change of the structure has to touch, and why each is so.

/// What a room of the product may import of other rooms; what it says of itself is free.
pub(crate) struct Room {
    /// `<crate>::<room>`.
    pub(crate) name: &'static str,
    /// Rooms, or modules in them, that it may import. `*`: everything, by those that compose the others.
    pub(crate) may_import: &'static [&'static str],
}

const fn room(name: &'static str, may_import: &'static [&'static str]) -> Room {
    Room { name, may_import }
}

/// One row for each room. The order is that of the data: nerve, then synapse, then mesh; nobody imports backwards.
pub(crate) const ROOMS: &[Room] = &[
    // The vocabulary is everyone's, so it knows nobody but a leaf.
    room("nerve::model", &["nerve::period"]),
    // Leaves: they know nothing of the mesh.
    room("nerve::tasks", &[]),
    room("nerve::watched", &[]),
    // The same number for a name, whoever asks.
    room("nerve::hash", &[]),
    // Text → values of the vocabulary.
    room("nerve::period", &[]),
    room("nerve::document", &["nerve::model", "nerve::period"]),
    // How other programs are spoken with; what is said is others' business.
    room("nerve::http", &["nerve::document", "nerve::model"]),
    // What both halves of SmartStack's configuration have in common.
    room("nerve::smartstack", &["nerve::model", "nerve::document", "nerve::period"]),
    // The writer owns the form of a record: the vocabulary, and nothing of checks or sources.
    room("nerve::store", &["nerve::model", "nerve::tasks"]),
    room(
        "nerve::check",
        &["nerve::model", "nerve::document", "nerve::http", "nerve::period", "nerve::tasks"],
    ),
    room(
        "nerve::source",
        &[
            "nerve::model",
            "nerve::check",
            "nerve::document",
            "nerve::http",
            "nerve::period",
            "nerve::smartstack",
            "nerve::tasks",
        ],
    ),
    room("nerve::settings", &["nerve::model", "nerve::store"]),
    room("nerve::publish", &["nerve::model", "nerve::settings", "nerve::store"]),
    room("nerve::enrolment", &["nerve::model", "nerve::store"]),
    room("nerve::rules", &["nerve::model", "nerve::hash", "nerve::store"]),
    room("nerve::vips", &["nerve::model", "nerve::store"]),
    // Who holds what of a network; the networks ask it before one of them goes.
    room("nerve::subnets", &["nerve::model", "nerve::hash", "nerve::store"]),
    room("nerve::networks", &["nerve::model", "nerve::hash", "nerve::store", "nerve::subnets"]),
    room(
        "nerve::registrar",
        &["nerve::model", "nerve::store", "nerve::check", "nerve::source", "nerve::period", "nerve::tasks"],
    ),
    // Told by sources what, by the registrar whether; the store's client of etcd serves it too.
    room(
        "nerve::announce",
        &["nerve::model", "nerve::registrar", "nerve::source", "nerve::store", "nerve::tasks"],
    ),
    // The reader's judgement: of the vocabulary alone, whoever filled it in.
    room("synapse::catalog", &["nerve::model"]),
    room("synapse::metrics", &["synapse::catalog", "nerve::store"]),
    // A leaf: files on disk.
    room("synapse::whole_file", &[]),
    room(
        "synapse::watch",
        &[
            "synapse::catalog",
            "synapse::metrics",
            "synapse::whole_file",
            "nerve::document",
            "nerve::hash",
            "nerve::http",
            "nerve::model",
            "nerve::period",
            "nerve::smartstack",
            "nerve::store",
            "nerve::tasks",
            "nerve::watched",
        ],
    ),
    room(
        "synapse::memory",
        &[
            "synapse::catalog",
            "synapse::metrics",
            "synapse::watch",
            "synapse::whole_file",
            "nerve::model",
            "nerve::store",
            "nerve::tasks",
        ],
    ),
    // What the catalog says, for other programs; a file is left alone while nothing is known of its service.
    room(
        "synapse::output",
        &[
            "synapse::catalog",
            "synapse::watch",
            "nerve::document",
            "nerve::hash",
            "nerve::model",
            "nerve::smartstack",
            "nerve::tasks",
        ],
    ),
    // A text of another program into watchers, ports and settings: it follows and serves nothing.
    room(
        "synapse::smartstack",
        &[
            "synapse::output",
            "synapse::watch",
            "nerve::document",
            "nerve::http",
            "nerve::model",
            "nerve::period",
            "nerve::smartstack",
        ],
    ),
    // Leaves of mesh.
    room("mesh::drain", &[]),
    room("mesh::advice", &[]),
    // A socket is known by what the vocabulary has for where it is bound.
    room("mesh::inherited", &["nerve::model"]),
    room("mesh::readiness", &[]),
    // Whoever listens on a unix socket makes its file so, and asks the kernel who has connected.
    room("mesh::socket_file", &["nerve::model"]),
    room("mesh::credentials", &[]),
    // What this host's routes say, for whoever is to stay out of their way.
    room("mesh::netlink", &["nerve::model"]),
    room("mesh::routes", &["nerve::model", "mesh::netlink"]),
    room("mesh::netns", &[]),
    room("mesh::nft", &["mesh::netlink"]),
    room("mesh::sys", &[]),
    room("mesh::api", &["nerve::model"]),
    // From an endpoint to a connection: each room knows those above it, and the proxy never the catalog.
    room("mesh::balance", &["nerve::model", "synapse::catalog"]),
    room(
        "mesh::proxy",
        &["nerve::model", "mesh::balance", "mesh::drain", "mesh::advice", "mesh::socket_file", "mesh::sys"],
    ),
    room(
        "mesh::ingress",
        &[
            "nerve::model",
            "nerve::tasks",
            "synapse::catalog",
            "mesh::balance",
            "mesh::proxy",
            "mesh::drain",
            "mesh::inherited",
            "mesh::advice",
            "mesh::socket_file",
        ],
    ),
    // Writes claims and routes; who listens on the addresses and who answers with them is told which ranges are usable.
    room(
        "mesh::vip",
        &[
            "nerve::model",
            "nerve::hash",
            "nerve::store",
            "nerve::tasks",
            "nerve::vips",
            "synapse::catalog",
            "mesh::netlink",
            "mesh::routes",
        ],
    ),
    // One address of this node; who listens there is another's business.
    room("mesh::link_local", &["nerve::model", "nerve::tasks", "mesh::netlink", "mesh::routes"]),
    // Tells the proxy who may come in: of whoever runs here, and of what the catalog has.
    room(
        "mesh::rules",
        &[
            "nerve::model",
            "nerve::source",
            "nerve::tasks",
            "synapse::catalog",
            "synapse::watch",
            "mesh::proxy",
        ],
    ),
    // Tells the proxy whom it may connect as; what the kernel needs for that is nobody else's business.
    room(
        "mesh::steer",
        &["nerve::model", "nerve::tasks", "synapse::catalog", "mesh::proxy", "mesh::netlink", "mesh::nft"],
    ),
    // Tells the proxy who is reached by tunnels and who may come by them, and the packet filter who may not come otherwise.
    room(
        "mesh::mtls",
        &[
            "nerve::model",
            "nerve::tasks",
            "synapse::catalog",
            "mesh::identity",
            "mesh::inherited",
            "mesh::nft",
            "mesh::proxy",
            "mesh::rules",
        ],
    ),
    // Claims subnets, programs the kernel, connects containers. What moves packets is the kernel; nobody waits for it.
    room(
        "mesh::overlay",
        &[
            "nerve::hash",
            "nerve::model",
            "nerve::networks",
            "nerve::store",
            "nerve::subnets",
            "nerve::tasks",
            "synapse::catalog",
            "mesh::netlink",
            "mesh::netns",
            "mesh::nft",
            "mesh::routes",
            "mesh::sys",
        ],
    ),
    // What Docker asks, said in the overlay's words.
    room("mesh::docker", &["nerve::model", "nerve::tasks", "mesh::drain", "mesh::overlay"]),
    // Looks, and asks the overlay what probes have told; changes nothing.
    room("mesh::doctor", &["nerve::model", "mesh::nft", "mesh::overlay", "mesh::routes"]),
    // Names are answered from the catalog; balancing is not its business.
    room(
        "mesh::dns",
        &[
            // TLS to upstreams.
            "nerve::http",
            "nerve::model",
            "nerve::tasks",
            "synapse::catalog",
            "mesh::drain",
            "mesh::inherited",
            "mesh::advice",
            "mesh::sys",
        ],
    ),
    // Who this node is: by certificates, tokens, and what signing nodes have in common by the store.
    room(
        "mesh::identity",
        // HTTP to an authority elsewhere.
        &[
            "nerve::enrolment",
            "nerve::http",
            "nerve::model",
            "nerve::store",
            "nerve::tasks",
            "nerve::watched",
        ],
    ),
    // Read handles of all rooms; nobody but the agent imports it.
    room(
        "mesh::admin",
        &[
            "nerve::model",
            // What applications report of themselves.
            "nerve::check",
            "nerve::document",
            "nerve::networks",
            "nerve::publish",
            "nerve::settings",
            "nerve::registrar",
            "nerve::rules",
            "nerve::source",
            "nerve::store",
            "nerve::tasks",
            "synapse::catalog",
            "mesh::api",
            "mesh::drain",
            "mesh::credentials",
            "mesh::identity",
            "mesh::mtls",
            "mesh::inherited",
            "mesh::readiness",
            "mesh::routes",
            "mesh::rules",
            "mesh::socket_file",
        ],
    ),
    // The rooms' `Config` types, and the reading of text.
    room(
        "mesh::config",
        &[
            "nerve::model",
            "nerve::document",
            "nerve::http",
            "nerve::period",
            "nerve::store",
            "nerve::source",
            "nerve::check",
            "nerve::registrar",
            "synapse::memory",
            "synapse::output",
            "synapse::smartstack",
            "synapse::watch",
            "mesh::admin",
            "mesh::balance",
            "mesh::dns",
            "mesh::docker",
            "mesh::identity",
            "mesh::ingress",
            "mesh::link_local",
            "mesh::mtls",
            "mesh::proxy",
            "mesh::overlay",
            "mesh::socket_file",
            "mesh::steer",
            "mesh::vip",
        ],
    ),
    // The only place where the rooms meet.
    room("mesh::agent", &["*"]),
    // A client of the admin interface, but for the commands that start an agent or read a file, and the one that removes what
    // an agent has left in the kernel.
    room(
        "mesh::cli",
        &[
            "nerve::model",
            "mesh::api",
            "mesh::agent",
            "mesh::config",
            "mesh::identity",
            "mesh::mtls",
            "mesh::overlay",
        ],
    ),
    room("mesh::main", &["mesh::cli"]),
];

/// Where an external crate may be named.
pub(crate) struct Home {
    /// The crate, as in Cargo.toml.
    pub(crate) name: &'static str,
    /// Beginnings of paths from the root of the repository.
    pub(crate) paths: &'static [&'static str],
}

const fn home(name: &'static str, paths: &'static [&'static str]) -> Home {
    Home { name, paths }
}

/// Who speaks HTTP.
const HTTP: &[&str] = &[
    "nerve/src/check/docker.rs",
    "nerve/src/check/http",
    // gRPC is HTTP/2: it has the connection of the HTTP check, and its own head and trailers.
    "nerve/src/check/grpc.rs",
    "nerve/src/http",
    "mesh/src/admin",
    "mesh/src/cli",
    "mesh/src/agent/demo",
    "mesh/src/docker",
    // Names are asked over it as well.
    "mesh/src/dns/server/https.rs",
];

/// Who speaks TLS: with servers, and with clients.
const TLS: &[&str] = &["nerve/src/http/tls.rs", "nerve/src/http/tls_server.rs", "mesh/src/identity"];

/// Crates whose types must leak nowhere else: exchanging one is a change of its home.
pub(crate) const HOMES: &[Home] = &[
    home("etcd-client", &["nerve/src/store/etcd"]),
    home("tonic", &["nerve/src/store/etcd"]),
    home(
        "zookeeper-client",
        &["nerve/src/store/zookeeper", "nerve/src/announce/zookeeper.rs", "synapse/src/watch/zookeeper"],
    ),
    home("redb", &["nerve/src/store/embedded"]),
    home("toml", &["nerve/src/document"]),
    home("saphyr-parser", &["nerve/src/document/yaml.rs"]),
    home("notify", &["nerve/src/source", "nerve/src/watched.rs"]),
    home("strsim", &["nerve/src/document", "mesh/src/admin/refusal.rs"]),
    // In DNS: times to live, which are whole seconds and may be none, as no `Period` is.
    home(
        "humantime",
        &[
            "nerve/src",
            "mesh/src/cli",
            "mesh/src/admin/consul",
            "mesh/src/dns/ttls.rs",
            "synapse/src/watch/aws",
            "mesh/src/identity",
            "mesh/src/admin/identity.rs",
        ],
    ),
    home("hyper", HTTP),
    home("hyper-util", HTTP),
    home("http-body-util", HTTP),
    home("hickory-proto", &["mesh/src/dns", "synapse/src/watch/resolve"]),
    home("hickory-server", &["mesh/src/dns"]),
    home(
        "rustls",
        &[
            "nerve/src/http/tls.rs",
            "nerve/src/http/tls_server.rs",
            "mesh/src/identity",
            // Handshakes between nodes, over the data plane's own sockets, and what is shown there.
            "mesh/src/proxy/tunnel/",
            "mesh/src/proxy/tunnel_table.rs",
        ],
    ),
    home("rustls-native-certs", &["nerve/src/http/tls.rs"]),
    home("tokio-rustls", TLS),
    home("regex", &["nerve/src/check/http", "mesh/src/admin/consul/filter"]),
    home(
        "ring",
        &[
            "nerve/src/check/scram.rs",
            "synapse/src/output/haproxy/server.rs",
            "synapse/src/watch/aws/sign.rs",
            // Tokens are known by their digests.
            "mesh/src/admin/access.rs",
            "mesh/src/identity",
            // Records of TLS are protected where they stand, which rustls does in vectors of its own.
            "mesh/src/proxy/tunnel/record.rs",
            // Private keys, and what nodes make of them together.
            "mesh/src/overlay/sealed",
            // The other side of a signature.
            "tests/src/server/aws",
            "tests/src/server/cfssl.rs",
        ],
    ),
    home(
        "zeroize",
        &[
            "synapse/src/watch/aws/secret.rs",
            "mesh/src/cli/client.rs",
            "mesh/src/config/identity.rs",
            "mesh/src/identity",
            "mesh/src/overlay/sealed",
        ],
    ),
    // Nodes agree on keys by it, where the kernel does not do that itself.
    home("x25519-dalek", &["mesh/src/overlay/sealed/esp"]),
    home("rcgen", &["mesh/src/identity"]),
    home("x509-parser", &["mesh/src/identity/certificate.rs"]),
    home("quick-xml", &["synapse/src/watch/aws", "synapse/src/watch/ec2.rs"]),
    home("md5", &["nerve/src/check/scram.rs"]),
    home(
        "base64",
        &[
            "nerve/src/check/scram.rs",
            "nerve/src/announce/znode.rs",
            "nerve/src/model/network/key.rs",
            "synapse/src/watch/decode.rs",
            // A question in a URL.
            "mesh/src/dns/server/https.rs",
            "mesh/src/identity",
        ],
    ),
    home("axum", &["mesh/src/admin"]),
    home("clap", &["mesh/src/cli"]),
    home("clap_complete", &["mesh/src/cli"]),
    home(
        "rtnetlink",
        &[
            "mesh/src/agent/demo",
            "mesh/src/routes/netlink.rs",
            "mesh/src/link_local/netlink.rs",
            "mesh/src/netlink.rs",
            "mesh/src/nft.rs",
            "mesh/src/overlay",
            "mesh/src/steer/netlink.rs",
            "mesh/src/steer/sockets.rs",
            "mesh/src/vip/netlink.rs",
        ],
    ),
    home("libc", &["mesh/src/sys", "mesh/src/dns/server"]),
    home(
        "nix",
        &[
            "mesh/src/agent",
            "mesh/src/dns/server",
            "mesh/src/ingress/addresses.rs",
            "mesh/src/netns.rs",
            "mesh/src/proxy",
            "mesh/src/socket_file.rs",
        ],
    ),
    home("rand", &["mesh/src/dns", "mesh/src/identity"]),
    home(
        "rustix",
        &[
            "nerve/src/check",
            "mesh/src/agent/handover",
            "mesh/src/credentials.rs",
            "mesh/src/inherited.rs",
            "mesh/src/netlink.rs",
            "mesh/src/overlay/probe",
            "mesh/src/proxy",
            "mesh/src/socket_file.rs",
            "mesh/src/sys",
            "tests/src",
        ],
    ),
    home("tempfile", &["mesh/src/agent/demo"]),
    home("socket2", &["mesh/src/proxy", "mesh/src/ingress", "mesh/src/dns"]),
    home("tracing-subscriber", &["mesh/src/agent"]),
    home("anyhow", &["mesh/src/agent", "mesh/src/cli"]),
];

/// Crates that any room may use. A new dependency goes here or above.
pub(crate) const COMMON: &[&str] = &[
    "arc-swap",
    "async-trait",
    "futures-util",
    "papaya",
    "prometheus",
    "serde",
    "serde_json",
    "smallvec",
    "thiserror",
    "tokio",
    "tokio-util",
    "tracing",
];

/// The longest file, in lines.
pub(crate) const FILE_LINES: usize = 600;
/// The longest function, in lines.
pub(crate) const FUNCTION_LINES: usize = 100;
/// The most variants of an error: more of them are two errors.
pub(crate) const ERROR_VARIANTS: usize = 12;
/// The only places with `unsafe`.
pub(crate) const UNSAFE: &[&str] = &["mesh/src/sys"];
/// The only places with tests that sleep outside of a loop that looks at a condition: the harness's own waiting, a rate that is
/// measured over real time, and a token that a server of another make lets expire.
pub(crate) const SLEEPS: &[&str] =
    &["tests/src/wait.rs", "nerve/src/check/runner.rs", "nerve/src/store/etcd/tests/mod.rs"];

/// The beginnings of what is taken for a path of the repository where a document says it.
pub(crate) const PATHS: &[&str] = &[
    ".cargo/",
    ".ci/",
    "benches/",
    "docs/",
    "examples/",
    "mesh/",
    "nerve/",
    "packaging/",
    "synapse/",
    "tests/",
    "tools/",
];
