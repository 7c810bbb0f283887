//! What runs here: an instance as its owner defines it.
//!
//! A [`Draft`] is what was written, a [`Definition`] what it means on this node: the id and the address filled in.
//! One form everywhere: a `[[service]]` table of the configuration, of a file in services.d, and the JSON of the API.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::announcement::Announcement;
use crate::check::{CheckMode, CheckSpec};
use crate::document::{Reported, Section};
use crate::model::{
    InstanceId, ListensOn, NameError, NodeName, PortName, ServiceName, Tag, UnixPath, Weight,
};
use crate::period::Period;

/// So many tags, labels and ports an instance may have: they travel to every node.
const MAX_MARKS: usize = 64;
/// So many checks an instance may have.
const MAX_CHECKS: usize = 16;
/// The longest value of a label, in bytes.
const MAX_LABEL: usize = 1024;

/// An instance among all of the fleet: ids are unique in their service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstanceKey {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub id: InstanceId,
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.id)
    }
}

/// What a definition takes from its node where it says nothing itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The node's name, part of default ids.
    pub node: NodeName,
    /// The node's address, where instances listen by default.
    pub address: IpAddr,
}

/// An instance as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Draft {
    /// The service that it is a copy of.
    pub name: ServiceName,
    /// Default: `<service>-<node>-<port>`, without a port `<service>-<node>-<file of the socket>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<InstanceId>,
    /// Default: the node's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its main port. Without one it is to have a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// The unix socket that it listens on, instead of a main port or beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<UnixPath>,
    /// Further ports by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<PortName, NonZeroU16>,
    /// Marks for filters.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<Tag>,
    /// Free data that travels along.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its share of the traffic.
    pub weight: Weight,
    /// It gets traffic only while none of the others can be had.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
    /// Its checks; without any it counts as passing.
    #[serde(rename = "check", skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckSpec>,
    /// What they have to say together.
    #[serde(skip_serializing_if = "CheckMode::is_default")]
    pub check_mode: CheckMode,
    /// Registered at run time only: it is deregistered once it has not been well for so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deregister_critical_after: Option<Period>,
}

/// Why a draft is refused: the key, and what is wrong with its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct DraftError {
    /// `id`, `address`, `tags`, …
    pub key: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// An instance as it is to be checked and registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Its service and id.
    pub key: InstanceKey,
    /// Where it listens.
    pub address: IpAddr,
    /// Its main port.
    pub port: Option<NonZeroU16>,
    /// The unix socket that it listens on; there is this or a main port, or both.
    pub socket: Option<UnixPath>,
    /// Further ports by name.
    pub ports: BTreeMap<PortName, NonZeroU16>,
    /// Marks for filters.
    pub tags: BTreeSet<Tag>,
    /// Free data that travels along.
    pub labels: BTreeMap<String, String>,
    /// Its share of the traffic.
    pub weight: Weight,
    /// It gets traffic only while none of the others can be had.
    pub backup: bool,
    /// Its checks.
    pub checks: Vec<CheckSpec>,
    /// What they have to say together.
    pub check_mode: CheckMode,
    /// Once it has not been well for so long, its registration at run time ends.
    pub deregister_critical_after: Option<Period>,
    /// Where else it is registered while it is well.
    pub announced: Option<Arc<Announcement>>,
    /// What runs it is stopping it: connections that are open may end well, and no new ones come.
    pub is_stopping: bool,
}

impl Draft {
    /// An instance on a port, with the defaults for everything else.
    #[must_use]
    pub fn new(name: ServiceName, port: NonZeroU16) -> Self {
        Self {
            name,
            id: None,
            address: None,
            port: Some(port),
            socket: None,
            ports: BTreeMap::new(),
            tags: BTreeSet::new(),
            labels: BTreeMap::new(),
            weight: Weight::default(),
            backup: false,
            checks: Vec::new(),
            check_mode: CheckMode::All,
            deregister_critical_after: None,
        }
    }

    /// Reads one `[[service]]` table.
    ///
    /// # Errors
    /// What is wrong was reported.
    pub fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let name = section.required("name");
        let id = section.optional("id");
        let address = section.optional("address");
        let (port, socket) = (section.given("port"), section.given("socket"));
        let ports = section.or("ports", BTreeMap::new());
        let tags = section.or("tags", BTreeSet::new());
        let labels = section.or("labels", BTreeMap::new());
        let weight = section.or("weight", Weight::default());
        let backup = section.or("backup", false);
        let check_mode = section.or("check_mode", CheckMode::All);
        let deregister_critical_after = section.optional("deregister_critical_after");
        section.renamed("checks", "check");
        let checks = section.list("check", CheckSpec::read);
        let checks = checks.into_iter().collect::<Result<_, _>>();
        if let (Ok(None), Ok(None)) = (&port, &socket) {
            return Err(section.invalid("port", "it is missing", "a port from 1 to 65535, or a `socket`"));
        }
        let (name, port, socket, checks) = (name?, port?, socket?, checks?);
        Ok(Self {
            name,
            id,
            address,
            port,
            socket,
            ports,
            tags,
            labels,
            weight,
            backup,
            checks,
            check_mode,
            deregister_critical_after,
        })
    }

    /// What it means on this node.
    ///
    /// # Errors
    /// It goes beyond a limit, or needs an id of its own.
    pub fn resolve(&self, local: &Local) -> Result<Definition, DraftError> {
        self.within_limits()?;
        let refuse = |key, message| Err(DraftError { key, message });
        if self.port.is_none() && self.socket.is_none() {
            return refuse("port", "nobody can connect to it; give it a port or a socket".to_owned());
        }
        let address = self.address.unwrap_or(local.address);
        if address.is_unspecified() || address.is_multicast() {
            return refuse(
                "address",
                format!("nobody can connect to {address}; give the instance's own address"),
            );
        }
        let id = match &self.id {
            Some(id) => id.clone(),
            None => match self.default_id(local) {
                Ok(id) => id,
                Err(error) => {
                    return refuse("id", format!("the default does not do ({error}); give it an id"));
                }
            },
        };
        Ok(Definition {
            key: InstanceKey { service: self.name.clone(), id },
            address,
            port: self.port,
            socket: self.socket.clone(),
            ports: self.ports.clone(),
            tags: self.tags.clone(),
            labels: self.labels.clone(),
            weight: self.weight,
            backup: self.backup,
            checks: self.checks.clone(),
            check_mode: self.check_mode,
            deregister_critical_after: self.deregister_critical_after,
            announced: None,
            is_stopping: false,
        })
    }

    fn default_id(&self, local: &Local) -> Result<InstanceId, NameError> {
        let (service, node) = (&self.name, &local.node);
        match (self.port, &self.socket) {
            (None, Some(socket)) => InstanceId::new(&format!("{service}-{node}-{}", socket.file_name())),
            (port, _) => InstanceId::new(&format!("{service}-{node}-{}", port.map_or(0, NonZeroU16::get))),
        }
    }

    fn within_limits(&self) -> Result<(), DraftError> {
        let counts = [
            ("ports", self.ports.len(), MAX_MARKS),
            ("tags", self.tags.len(), MAX_MARKS),
            ("labels", self.labels.len(), MAX_MARKS),
            ("check", self.checks.len(), MAX_CHECKS),
        ];
        for (key, count, limit) in counts {
            if count > limit {
                return Err(DraftError {
                    key,
                    message: format!("{count} of them; at most {limit} are allowed"),
                });
            }
        }
        for (label, value) in &self.labels {
            let wrong = |message| DraftError { key: "labels", message };
            Tag::new(label).map_err(|error| wrong(format!("{label:?}: {}", error.rule)))?;
            if value.len() > MAX_LABEL {
                return Err(wrong(format!("the value of {label:?} has more than {MAX_LABEL} bytes")));
            }
        }
        Ok(())
    }
}

impl Definition {
    /// Reads one `[[service]]` table and fills in what the node gives.
    ///
    /// # Errors
    /// What is wrong was reported.
    pub fn read(section: &mut Section<'_>, local: &Local) -> Result<Self, Reported> {
        let draft = Draft::read(section)?;
        if draft.deregister_critical_after.is_some() {
            let why = "what stands in a file is not deregistered; only what is registered at run time is";
            return Err(section.invalid("deregister_critical_after", why, "none"));
        }
        draft.resolve(local).map_err(|error| section.invalid(error.key, error.message, ""))
    }

    /// Where it listens.
    #[must_use]
    pub fn listens_on(&self) -> ListensOn {
        ListensOn { address: self.address, port: self.port, socket: self.socket.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    pub(crate) fn local() -> Local {
        Local { node: NodeName::new("a").unwrap(), address: "192.0.2.11".parse().unwrap() }
    }

    fn read(text: &str) -> Result<Definition, String> {
        let document = Document::parse("web.toml", text).unwrap();
        document.decode(|root| Definition::read(root, &local())).map_err(|errors| errors.to_string())
    }

    #[test]
    fn id_and_address_come_from_the_node_unless_given() {
        let definition = read("name = \"web\"\nport = 8080").unwrap();
        assert_eq!(definition.key.to_string(), "web/web-a-8080");
        assert_eq!(definition.listens_on().to_string(), "192.0.2.11:8080");
        let definition = read("name = \"web\"\nport = 1\nid = \"x\"\naddress = \"::1\"").unwrap();
        assert_eq!(
            (definition.key.id.as_str(), definition.listens_on().to_string().as_str()),
            ("x", "[::1]:1")
        );
    }

    #[test]
    fn an_instance_may_listen_on_a_unix_socket_instead_of_a_port_or_beside_it() {
        let definition = read("name = \"web\"\nsocket = \"/run/web/app.sock\"").unwrap();
        assert_eq!(definition.key.to_string(), "web/web-a-app.sock");
        assert_eq!(
            (definition.port, definition.listens_on().to_string()),
            (None, "unix:/run/web/app.sock".to_owned())
        );
        let definition = read("name = \"web\"\nport = 80\nsocket = \"/run/app.sock\"").unwrap();
        assert_eq!(definition.key.to_string(), "web/web-a-80");
        assert_eq!(definition.listens_on().to_string(), "192.0.2.11:80 unix:/run/app.sock");
        let nowhere = Draft { port: None, ..Draft::new("web".parse().unwrap(), NonZeroU16::MIN) };
        assert_eq!(nowhere.resolve(&local()).unwrap_err().key, "port");
    }

    #[test]
    fn mistakes_name_file_line_and_key() {
        for (text, expected) in [
            ("name = \"web\"", "web.toml:1:1: port: it is missing"),
            (
                "name = \"web\"\nsocket = \"app.sock\"",
                "web.toml:2:10: socket: \"app.sock\" is no path of a unix socket",
            ),
            ("name = \"web\"\nsocket = \"/a b\"", "web.toml:1:1: id: the default does not do"),
            (
                "name = \"web\"\nport = 80\naddress = \"0.0.0.0\"",
                "web.toml:3:11: address: nobody can connect",
            ),
            (
                "name = \"web\"\nport = 80\nlabels = { \"\" = \"x\" }",
                "web.toml:3:10: labels: \"\": it is empty",
            ),
            ("name = \"web\"\nport = 80\ntags = [\"\"]", "web.toml:3:9: tags[0]:"),
            (
                "name = \"web\"\nport = 80\nchecks = []",
                "web.toml:3:1: checks: this key is now called `check`",
            ),
            (
                "name = \"web\"\nport = 80\ncheck = [{ htp = \"/\" }]",
                "web.toml:3:10: check[0]: it names no kind",
            ),
        ] {
            let shown = read(text).unwrap_err();
            assert!(shown.starts_with(expected), "{text}: {shown}");
        }
        let long = "x".repeat(63);
        let local = Local { node: NodeName::new(&long).unwrap(), address: local().address };
        let draft = Draft::new(ServiceName::new(&long).unwrap(), NonZeroU16::MAX);
        assert!(draft.resolve(&local).unwrap_err().to_string().ends_with("give it an id"));
    }

    #[test]
    fn a_draft_written_as_json_reads_back_the_same() {
        let text = "name = \"web\"\nport = 80\nid = \"x\"\ntags = [\"v2\"]\nweight = 5\nsocket = \"/run/x\"\nports = { m = 81 }\n\
                    labels = { a = \"b\" }\ncheck = [{ http = \"/\" }, { tcp = true, rise = 1 }]";
        let draft = Document::parse("x", text).unwrap().decode(Draft::read).unwrap();
        let json = serde_json::to_string(&draft).unwrap();
        assert_eq!(Document::parse_json("x", &json).unwrap().decode(Draft::read).unwrap(), draft);
    }
}
