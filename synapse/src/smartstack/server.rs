//! A server that stands in the configuration itself.

use std::num::NonZeroU16;

use nerve::document::{Reported, Section, Value};
use nerve::model::Weight;
use nerve::smartstack::{Number, Word};

use crate::watch::Server;

/// The label that holds a server's own options for HAProxy.
const OPTIONS_LABEL: &str = "haproxy_server_options";

/// One of `default_servers`, and of the servers of DNS.
pub(super) fn server(section: &mut Section<'_>) -> Result<Server, Reported> {
    section.allow("id");
    let (host, port) = (section.required::<Word>("host"), section.required::<Number<NonZeroU16>>("port"));
    let name = section.optional::<Word>("name").map(|Word(name)| name);
    let weight = section.optional::<Number<u16>>("weight").and_then(|Number(weight)| NonZeroU16::new(weight));
    let labels = section.optional::<Value>("labels").and_then(|labels| serde_json::to_value(labels).ok());
    let options = section.optional::<Word>(OPTIONS_LABEL).map(|Word(options)| options);
    let (Word(host), Number(port)) = (host?, port?);
    let host =
        host.parse().map_err(|wrong: String| section.invalid("host", wrong, "an address or a name"))?;
    let mut server = Server { name, ..Server::at(host, port) };
    server.weight = weight.map_or_else(Weight::default, Weight);
    if let Some(serde_json::Value::Object(labels)) = labels {
        let text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        server.labels = labels.into_iter().map(|(key, value)| (key, text(value))).collect();
    }
    server.labels.extend(options.map(|options| (OPTIONS_LABEL.to_owned(), options)));
    Ok(server)
}
