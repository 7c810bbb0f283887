//! What the table is read as.

use nerve::document::Document;

use super::*;

fn read(text: &str) -> Result<Dns, String> {
    let document = Document::parse("x", text).unwrap();
    document.decode(Dns::read).map_err(|errors| errors.to_string())
}

fn nowhere() -> Node {
    Node { name: "a".parse().unwrap(), address: Ipv4Addr::LOCALHOST.into(), region: None, zone: None }
}

#[test]
fn what_is_not_given_is_as_the_room_has_it() {
    assert_eq!(read("").unwrap().for_server(&nowhere()), dns::Config::default());
}

#[test]
fn upstreams_and_routes_are_read_as_they_are_written() {
    let text = "upstreams = [\"192.0.2.53\", \"tls://192.0.2.54#dns.example.com\"]\nserve_stale = \"off\"\n\
                cache_entries = 0\n[[route]]\ndomain = \"corp.example\"\nupstreams = [\"tcp://192.0.2.55\"]\n\
                [[route]]\ndomain = \"secret.example\"\nupstreams = []\n";
    let config = read(text).unwrap().for_server(&nowhere());
    assert!(matches!(&config.upstreams, Upstreams::List(list) if list.len() == 2));
    assert_eq!(config.routes.len(), 2);
    assert_eq!((config.serve_stale.as_secs(), config.limits.cache_entries), (0, 0));
    let off = read(&format!("recursion = \"off\"\n{text}")).unwrap().for_server(&nowhere());
    assert_eq!(off.upstreams, Upstreams::None);
    let everyone = read("recursion = \"everyone\"").unwrap().for_server(&nowhere());
    assert_eq!(everyone.recursion, RecursionFor::Everyone);
}

#[test]
fn who_may_ask_is_shown_as_it_is_read() {
    for text in
        ["\"private\"", "\"everyone\"", "\"off\"", "[\"private\", \"198.51.100.0/24\"]", "[\"fd00::/8\"]"]
    {
        let text = format!("recursion = {text}");
        let shown = nerve::document::to_toml(&read(&text).unwrap()).unwrap();
        assert_eq!(read(&shown).unwrap(), read(&text).unwrap(), "{shown}");
    }
    let list = read("recursion = [\"private\", \"198.51.100.0/24\"]").unwrap().for_server(&nowhere());
    for (client, may) in [("127.0.0.1", true), ("198.51.100.7", true), ("8.8.8.8", false)] {
        assert_eq!(list.recursion.permits(client.parse().unwrap()), may, "{client}");
    }
}

#[test]
fn what_guards_is_shown_as_it_is_read() {
    let text = "cookies = false\nrate_limit = 50\nrate_limit_slip = 0\nrate_limit_exempt = [\"10.0.0.0/8\"]\n\
                identity = \"a\"\nversion = \"7\"\n";
    let given = read(text).unwrap();
    assert_eq!(read(&nerve::document::to_toml(&given).unwrap()).unwrap(), given);
    let config = given.for_server(&nowhere());
    let limit = config.rate_limit.unwrap();
    assert_eq!((config.cookies, limit.per_second.get(), limit.slip), (false, 50, 0));
    assert!(!limit.exempt.contains(Ipv4Addr::LOCALHOST.into()));
    assert_eq!(config.identity.server.unwrap().as_str(), "a");
    assert_eq!(read("rate_limit = \"off\"").unwrap().for_server(&nowhere()).rate_limit, None);
}

#[test]
fn times_to_live_are_as_dns_ttl_says_where_nothing_else_does() {
    let text = "ttl = \"7s\"\n[ttls]\nnodes = \"1m\"\nnegative = \"0s\"\nby_name = { \"db-*\" = \"0s\" }\n";
    let ttls = read(text).unwrap().for_server(&nowhere()).ttls;
    let [domains, services, reverse, nodes, negative] =
        [ttls.domains, ttls.services, ttls.reverse, ttls.nodes, ttls.negative].map(Ttl::get);
    assert_eq!([domains, services, reverse, nodes, negative], [7, 7, 7, 60, 0]);
    assert_eq!(ttls.of_services, [("db-*".parse().unwrap(), "0s".parse().unwrap())].into_iter().collect());
}

#[test]
fn the_link_local_address_is_listened_on_once() {
    let listen = |text: &str| read(text).unwrap().for_server(&nowhere()).listen;
    let shown = |text: &str| listen(text).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let own = "link_local = \"169.254.53.53\"\n";
    assert_eq!(shown(own), "127.0.0.1:53 169.254.53.53:53");
    assert_eq!(shown(&format!("{own}listen = [\"169.254.53.53:53\"]")), "169.254.53.53:53");
    assert_eq!(shown(&format!("{own}listen = [\"0.0.0.0:53\"]")), "0.0.0.0:53");
    assert_eq!(shown(&format!("{own}listen = [\"0.0.0.0:5300\"]")), "0.0.0.0:5300 169.254.53.53:53");
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let route = |domain: &str| format!("[[route]]\ndomain = \"{domain}\"\nupstreams = []\n");
    for (text, why) in [
        ("upstreams = [\"dns.example.com\"]".to_owned(), "there is no IP address in it"),
        ("recursion = \"some\"".to_owned(), "\"private\", \"everyone\", \"off\""),
        ("rate_limit = 0".to_owned(), "from 1 to 50000"),
        ("rate_limit = 50001".to_owned(), "from 1 to 50000"),
        ("rate_limit = \"on\"".to_owned(), "from 1 to 50000"),
        ("rate_limit_exempt = \"off\"".to_owned(), "\"private\", or a list"),
        ("identity = \"\"".to_owned(), "1 to 64 characters"),
        ("recursion = 7".to_owned(), "\"private\", \"everyone\", \"off\""),
        ("recursion = [\"10.0.0.1/8\"]".to_owned(), "recursion[0]"),
        (format!("recursion = [{}]", "\"private\",".repeat(65)), "it has 65 ranges"),
        ("ttl = \"500ms\"".to_owned(), "DNS knows whole seconds only"),
        ("ttls = { by_name = { \"a*b\" = \"1s\" } }".to_owned(), "\"a*b\" names no services"),
        (
            "tls_listen = [\"127.0.0.1:853\"]".to_owned(),
            "tls_cert_file: it is missing, and there are addresses",
        ),
        ("tls_cert_file = \"/a\"".to_owned(), "tls_key_file: it is missing, and `tls_cert_file` is given"),
        (
            "https_listen = [\"127.0.0.1:443\"]\ntls_key_file = \"/a\"".to_owned(),
            "tls_cert_file: it is missing",
        ),
        ("query_log = \"1/0\"".to_owned(), "\"off\", \"all\", or one in so many"),
        ("query_log = \"some\"".to_owned(), "\"off\", \"all\", or one in so many"),
        ("serve_stale = \"2days\"".to_owned(), "1day"),
        ("upstream_ca_file = \"ca.pem\"".to_owned(), "is not absolute"),
        ("link_local = \"169.254.169.254\"".to_owned(), "clouds have their metadata"),
        ("[[route]]\ndomain = \"a\"".to_owned(), "route[0].upstreams: it is missing"),
        (route("."), "the root is what `upstreams` are asked for"),
        (route("a.example") + &route("A.example."), "there are two for a.example"),
        (
            "alt_domains = [\"consul\"]\n".to_owned() + &route("x.consul"),
            "x.consul is under consul, which is answered here",
        ),
        ("alt_domains = [\"x.mesh.internal\"]".to_owned(), "x.mesh.internal is under mesh.internal, so"),
        ("alt_domains = [\"a.b\", \"b\"]".to_owned(), "a.b is under b, so"),
        ("alt_domains = [\"Mesh.Internal\"]".to_owned(), "mesh.internal is there twice"),
        (route("x.mesh.internal"), "x.mesh.internal is under mesh.internal, which is answered here"),
    ] {
        let shown = read(&text).unwrap_err();
        assert!(shown.contains(why), "{text}: {shown}");
    }
}

#[test]
fn clients_are_spoken_with_over_tls_where_there_is_an_address_for_it() {
    let files = "tls_cert_file = \"/a\"\ntls_key_file = \"/b\"\n";
    let of = |text: &str| read(&format!("{text}\n{files}")).unwrap().for_server(&nowhere()).encrypted;
    assert_eq!(of(""), None);
    let encrypted = of("tls_listen = [\"127.0.0.1:853\", \"[::1]:853\"]").unwrap();
    assert_eq!((encrypted.tls_listen.len(), encrypted.https_listen.len()), (2, 0));
    assert_eq!(encrypted.certificate.key_file.path(), std::path::Path::new("/b"));
    assert_eq!(of("https_listen = [\"127.0.0.1:443\"]").unwrap().https_listen.len(), 1);
}

#[test]
fn the_query_log_has_none_all_or_a_part() {
    for (text, every) in [("off", None), ("all", Some(1)), ("1/1000", Some(1000))] {
        let config = read(&format!("query_log = {text:?}")).unwrap();
        assert_eq!(config.for_server(&nowhere()).query_log.map(NonZeroU32::get), every);
        assert_eq!(config.query_log.to_string(), text);
    }
}
