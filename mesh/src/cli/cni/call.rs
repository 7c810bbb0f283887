//! What a container runtime asks for: the variables of the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use super::failure::{Code, Failure};

/// "indicates the desired operation".
pub(super) const COMMAND: &str = "CNI_COMMAND";
/// Where the agent's names of attachments end: 128 characters, one of them before the interface.
const LONGEST_ID: usize = 128 - 1 - 15;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Add { container: Container, namespace: PathBuf, arguments: Arguments },
    Del { container: Container },
    Check { container: Container },
    Gc,
    Status,
    Version,
}

/// Whose interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    /// "A unique plaintext identifier for a container".
    pub(super) id: String,
    /// "Name of the interface to create inside the container".
    pub(super) interface: String,
}

/// "Extra arguments passed in by the user at invocation time."
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Arguments {
    /// Addresses that it is to have.
    pub(super) addresses: Vec<IpAddr>,
    /// What is said of it.
    pub(super) labels: BTreeMap<String, String>,
    /// What the runtime calls it, `K8S_POD_NAME`: podman says so of containers too.
    pub(super) called: Option<String>,
}

impl Call {
    /// Reads the environment; `variable` looks one of its variables up.
    pub(super) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let optional = |name: &str| match variable(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(Err(_)) => Err(wrong(name, "it is not UTF-8")),
        };
        let required = |name: &str| optional(name)?.ok_or_else(|| wrong(name, "it is not set"));
        let container = || {
            let (id, interface) = (required("CNI_CONTAINERID")?, required("CNI_IFNAME")?);
            Container::new(id, interface)
        };
        match required(COMMAND)?.as_str() {
            "ADD" => {
                let (container, namespace) = (container()?, required("CNI_NETNS")?.into());
                let arguments = Arguments::read(&optional("CNI_ARGS")?.unwrap_or_default())?;
                Ok(Self::Add { container, namespace, arguments })
            }
            // The namespace may be gone, and is not needed.
            "DEL" => Ok(Self::Del { container: container()? }),
            "CHECK" => Ok(Self::Check { container: container()? }),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            other => Err(wrong(COMMAND, &format!("there is no command {other:?}"))),
        }
    }
}

impl Container {
    fn new(id: String, interface: String) -> Result<Self, Failure> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let begins_well = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !begins_well || !id.bytes().all(is_plain) || id.len() > LONGEST_ID {
            let why = format!(
                "{:?} is not 1 to {LONGEST_ID} letters, digits, '-', '_' and '.' that begin with a letter or a digit",
                id.chars().take(200).collect::<String>()
            );
            return Err(wrong("CNI_CONTAINERID", &why));
        }
        if !is_interface(&interface) {
            return Err(wrong("CNI_IFNAME", &not_an_interface(&interface)));
        }
        Ok(Self { id, interface })
    }
}

impl Arguments {
    /// `KEY=VALUE;…`. Who passes what is not known says by `IgnoreUnknown` whether that matters.
    fn read(text: &str) -> Result<Self, Failure> {
        let mut read = Self::default();
        let (mut unknown, mut ignore) = (None, false);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| wrong("CNI_ARGS", &format!("{pair:?} is no KEY=VALUE")))?;
            match key {
                "IP" => {
                    for address in value.split(',') {
                        read.addresses.push(address_of(address).map_err(|why| wrong("CNI_ARGS", &why))?);
                    }
                }
                label if is_for_mesh(label) => drop(read.labels.insert(label.to_owned(), value.to_owned())),
                "K8S_POD_NAME" => read.called = Some(value.to_owned()),
                "IgnoreUnknown" => ignore = matches!(value, "1" | "true" | "True" | "TRUE" | "t" | "T"),
                other => unknown = Some(other.to_owned()),
            }
        }
        match unknown.filter(|_| !ignore) {
            Some(key) => {
                Err(wrong("CNI_ARGS", &format!("{key:?} is not known here, and IgnoreUnknown is not set")))
            }
            None => Ok(read),
        }
    }
}

/// Is a label for the mesh? What it means is the agent's to say.
pub(super) fn is_for_mesh(label: &str) -> bool {
    label.starts_with("plexus.")
}

/// An address, with or without the length of its subnet.
pub(super) fn address_of(text: &str) -> Result<IpAddr, String> {
    let address = text.split('/').next().unwrap_or_default();
    address.parse().map_err(|_| format!("{text:?} is no address"))
}

/// Can a link be called so?
pub(super) fn is_interface(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=15).contains(&name.len()) && name.bytes().all(is_plain) && name != "." && name != ".."
}

pub(super) fn not_an_interface(name: &str) -> String {
    let shown: String = name.chars().take(100).collect();
    format!("{shown:?} cannot be the name of an interface: 1 to 15 letters, digits, '-', '_' and '.'")
}

fn wrong(variable: &str, why: &str) -> Failure {
    Failure::new(Code::Environment, format!("{variable}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Call, String> {
        let find = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        Call::read(find).map_err(|failure| failure.json().to_string())
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/c1"),
    ];

    fn with(name: &str, value: &str) -> Result<Call, String> {
        let mut variables: Vec<(&str, &str)> = ADD.into_iter().filter(|(known, _)| *known != name).collect();
        variables.push((name, value));
        read(&variables)
    }

    #[test]
    fn each_command_says_what_it_needs() {
        let container = Container { id: "c1".to_owned(), interface: "eth0".to_owned() };
        let add = Call::Add {
            container: container.clone(),
            namespace: "/run/netns/c1".into(),
            arguments: Arguments::default(),
        };
        assert_eq!(read(&ADD), Ok(add));
        let without_namespace =
            |command| read(&[("CNI_COMMAND", command), ADD[1], ADD[2], ("CNI_NETNS", "")]);
        assert_eq!(without_namespace("DEL"), Ok(Call::Del { container: container.clone() }));
        assert_eq!(without_namespace("CHECK"), Ok(Call::Check { container }));
        assert!(without_namespace("ADD").unwrap_err().contains("CNI_NETNS: it is not set"));
        for (command, call) in [("GC", Call::Gc), ("STATUS", Call::Status), ("VERSION", Call::Version)] {
            assert_eq!(read(&[("CNI_COMMAND", command)]), Ok(call));
        }
        for missing in ["CNI_CONTAINERID", "CNI_IFNAME"] {
            let failure = with(missing, "").unwrap_err();
            assert!(failure.contains(missing) && failure.contains("\"code\":4"), "{failure}");
        }
        assert!(with("CNI_COMMAND", "add").unwrap_err().contains("there is no command"));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(LONGEST_ID + 1);
        for bad in ["../c1", "-c1", "a b", "c@1", "ü", long.as_str()] {
            assert!(with("CNI_CONTAINERID", bad).unwrap_err().contains("CNI_CONTAINERID"), "{bad}");
        }
        for bad in ["..", "eth0:1", "a/b", "an-interface-with-16", "a b"] {
            assert!(with("CNI_IFNAME", bad).unwrap_err().contains("CNI_IFNAME"), "{bad}");
        }
    }

    #[test]
    fn arguments_are_known_or_may_be_ignored() {
        let arguments = |text: &str| match with("CNI_ARGS", text) {
            Ok(Call::Add { arguments, .. }) => Ok(arguments.addresses),
            other => Err(format!("{other:?}")),
        };
        let address: IpAddr = "10.42.3.7".parse().unwrap();
        assert_eq!(arguments("IP=10.42.3.7"), Ok(vec![address]));
        assert_eq!(arguments("IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.42.3.7/24,fd42::7").unwrap().len(), 2);
        assert!(arguments("K8S_POD_UID=7").unwrap_err().contains("K8S_POD_UID"));
        assert!(arguments("IP").is_err() && arguments("IP=ten").is_err());
        let said = with("CNI_ARGS", "plexus.check=http=/x;plexus.port=80;K8S_POD_NAME=web");
        let Ok(Call::Add { arguments, .. }) = said else { panic!("{said:?}") };
        let labels: Vec<(&str, &str)> =
            arguments.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(labels, [("plexus.check", "http=/x"), ("plexus.port", "80")]);
        assert_eq!(arguments.called.as_deref(), Some("web"));
    }
}
