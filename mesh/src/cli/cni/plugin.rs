//! What a container runtime asks for, done: by the agent, and by a plugin that gives addresses where the configuration names one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hyper::Method;
use nerve::model::ServiceName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::answer::{Delegated, differences, result};
use super::call::{Arguments, Call, Container};
use super::configuration::{Configuration, Valid, version_asked};
use super::delegate::Delegate;
use super::failure::{Code, Failure};
use super::version::Version;
use crate::api::{
    self, AttachRequest, Attachable, AttachmentCheck, AttachmentOwner, Attachments, Changed, NewAttachment,
    path,
};
use crate::cli::client::{Client, escape};
use crate::cli::error::{Error, Fault};

/// So many characters of a container's id runtimes give to it as an alias, as Docker does.
const SHORT: usize = 12;
/// A configuration with the results of plugins before this one is some kilobytes.
const MOST_BYTES: u64 = 1024 * 1024;

/// Does what the environment and the input say. What is to be printed, if anything is.
pub(super) async fn run(
    variable: impl Fn(&str) -> Option<OsString>,
    input: impl AsyncRead + Unpin,
) -> Result<Option<Value>, Failure> {
    let call = Call::read(&variable)?;
    let mut text = Vec::new();
    let read = input.take(MOST_BYTES).read_to_end(&mut text).await;
    read.map_err(|error| Failure::new(Code::Io, format!("standard input cannot be read: {error}")))?;
    if call == Call::Version {
        return Ok(Some(Version::all(version_asked(&text).as_deref())));
    }
    let configuration = Configuration::read(&text)?;
    let version = configuration.version;
    let done = async {
        let agent = agent(&configuration, &variable)?;
        let path = variable("CNI_PATH");
        let delegate = configuration.ipam.as_deref();
        let delegate = delegate.map(|name| Delegate::find(name, path.as_ref(), &text)).transpose()?;
        let is_own_allowed = variable("CNI_NETNS_OVERRIDE").is_some_and(|value| !value.is_empty());
        let plugin = Plugin { agent, configuration: &configuration, delegate, is_own_allowed };
        plugin.call(call).await
    };
    done.await.map_err(|failure| failure.of(version))
}

/// Where the agent is: as the configuration says, as the environment says, or where it is unless told otherwise.
fn agent(
    configuration: &Configuration,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Client, Failure> {
    let token = configuration.token_file.clone().or_else(|| variable(api::TOKEN_VARIABLE).map(PathBuf::from));
    if let Some(admin) = &configuration.admin {
        return Ok(admin.clone().with_token(token));
    }
    let Some(url) = variable(api::URL_VARIABLE) else { return Ok(Client::usual().with_token(token)) };
    let client: Client = url
        .to_string_lossy()
        .parse()
        .map_err(|error| Failure::new(Code::Environment, format!("{}: {error}", api::URL_VARIABLE)))?;
    Ok(client.with_token(token))
}

fn owned((label, value): (&String, &String)) -> (String, String) {
    (label.clone(), value.clone())
}

struct Plugin<'a> {
    agent: Client,
    configuration: &'a Configuration,
    delegate: Option<Delegate<'a>>,
    is_own_allowed: bool,
}

impl Plugin<'_> {
    async fn call(&self, call: Call) -> Result<Option<Value>, Failure> {
        let version = self.configuration.version;
        match call {
            Call::Add { container, namespace, arguments } => {
                self.add(&container, namespace, arguments).await.map(Some)
            }
            Call::Del { container } => self.del(&container).await.map(|()| None),
            Call::Check { container } => {
                self.needs(Version::V0_4_0, "CHECK")?;
                self.check(&container).await.map(|()| None)
            }
            Call::Gc => {
                self.needs(Version::V1_1_0, "GC")?;
                self.gc().await.map(|()| None)
            }
            Call::Status => {
                self.needs(Version::V1_1_0, "STATUS")?;
                self.status().await.map(|()| None).map_err(Failure::into_unavailable)
            }
            Call::Version => Ok(Some(Version::all(Some(version.as_str())))),
        }
    }

    /// Is the configuration of a version that knows a command?
    fn needs(&self, first: Version, command: &str) -> Result<(), Failure> {
        let version = self.configuration.version;
        if version >= first {
            return Ok(());
        }
        let (first, own) = (first.as_str(), version.as_str());
        let why = format!("{command} came with version {first} of CNI, and the configuration is of {own}");
        Err(Failure::new(Code::IncompatibleVersion, why))
    }

    /// What the interface is called in the container.
    fn interface<'a>(&'a self, container: &'a Container) -> &'a str {
        self.configuration.interface.as_deref().unwrap_or(&container.interface)
    }

    /// By what the agent knows it.
    fn id(&self, container: &Container) -> String {
        format!("{}@{}", container.id, self.interface(container))
    }

    async fn add(
        &self,
        container: &Container,
        namespace: PathBuf,
        arguments: Arguments,
    ) -> Result<Value, Failure> {
        self.refuse_own(&namespace)?;
        self.refuse_taken(container)?;
        let Some(delegate) = &self.delegate else {
            let asked = self.configuration.addresses.iter().chain(&arguments.addresses).copied().collect();
            let request = self.request(container, &namespace, asked, &arguments);
            return self.attach(&Delegated::default(), &request).await;
        };
        let added = async {
            let given = delegate.run("ADD").await?.unwrap_or_default();
            let given: Delegated = serde_json::from_value(given).map_err(|error| {
                Failure::new(
                    Code::Decoding,
                    format!("what the delegated plugin has given cannot be read: {error}"),
                )
            })?;
            given.refuse_routes()?;
            let request = self.request(container, &namespace, given.addresses()?, &arguments);
            self.attach(&given, &request).await
        };
        let added = added.await;
        if added.is_err() {
            // "If a plugin … fails after delegating, it must call the delegated plugin again with DEL". That it fails as well is of
            // no use to anybody: the runtime calls DEL for the whole.
            let _ = delegate.run("DEL").await;
        }
        added
    }

    fn request(
        &self,
        container: &Container,
        namespace: &Path,
        addresses: Vec<IpAddr>,
        arguments: &Arguments,
    ) -> AttachRequest {
        let owner = AttachmentOwner {
            configuration: self.configuration.name.clone(),
            container: container.id.clone(),
            interface: container.interface.clone(),
        };
        AttachRequest {
            id: self.id(container),
            network: self.configuration.network.clone(),
            namespace: namespace.to_owned(),
            interface: self.interface(container).to_owned(),
            addresses,
            owner: Some(owner),
            labels: self.configuration.labels.iter().chain(&arguments.labels).map(owned).collect(),
            aliases: self.aliases(container, arguments),
        }
    }

    /// Its aliases on this network, or without any what the runtime calls it. Runtimes take names that are no DNS labels: nobody can ask
    /// for these. The first characters of its id, which some give as an alias, are no name of a service.
    fn aliases(&self, container: &Container, arguments: &Arguments) -> BTreeSet<ServiceName> {
        let is_id = |alias: &&String| alias.len() >= SHORT && container.id.starts_with(alias.as_str());
        let mut aliases = self.configuration.aliases.iter().filter(|alias| !is_id(alias)).peekable();
        let called = arguments.called.iter().filter(|_| aliases.peek().is_none()).collect::<Vec<_>>();
        aliases.chain(called).filter_map(|name| ServiceName::new(name).ok()).collect()
    }

    async fn attach(&self, delegated: &Delegated, request: &AttachRequest) -> Result<Value, Failure> {
        let what = format!("attaching {} to network {}", request.id, request.network);
        let done = self.agent.send(&what, Method::POST, path::ATTACHMENTS, request).await;
        let done: NewAttachment = done.map_err(Failure::agent)?;
        Ok(result(self.configuration, delegated, &request.namespace, &done))
    }

    async fn del(&self, container: &Container) -> Result<(), Failure> {
        self.detach(&self.id(container)).await?;
        // Its addresses are given back when nothing uses them any more.
        self.delegate("DEL").await
    }

    /// One that is not attached is detached.
    async fn detach(&self, id: &str) -> Result<(), Failure> {
        let path = path::ATTACHMENT.replace("{id}", &escape(id));
        let what = format!("detaching {id}");
        let done = self.agent.send::<Changed>(&what, Method::DELETE, &path, &()).await;
        done.map(drop).map_err(Failure::agent)
    }

    async fn check(&self, container: &Container) -> Result<(), Failure> {
        let before = self.configuration.before.as_ref().ok_or_else(|| {
            Failure::new(Code::Configuration, "the configuration's key `prevResult`: CHECK needs it")
        })?;
        self.delegate("CHECK").await?;
        let id = self.id(container);
        let path = path::ATTACHMENT_CHECK.replace("{id}", &escape(&id));
        let checked = match self.agent.get::<AttachmentCheck>(&format!("checking {id}"), &path).await {
            Err(Error::Failed { fault: Fault::Unknown, .. }) => {
                let network = &self.configuration.network;
                let why = format!("{id} is not attached to network {network} on this node");
                return Err(Failure::new(Code::UnknownContainer, why));
            }
            checked => checked.map_err(Failure::agent)?,
        };
        let mut problems = checked.problems;
        problems.extend(differences(before, &checked.attachment));
        if problems.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Code::Changed, format!("{id} is not as it was attached: {}", problems.join("; "))))
    }

    /// Detaches what the runtime knows nothing of.
    async fn gc(&self) -> Result<(), Failure> {
        let Configuration { name, network, valid, .. } = self.configuration;
        // Who does not say who is valid does not mean that nobody is.
        let valid = valid.as_ref().ok_or_else(|| {
            Failure::new(
                Code::Configuration,
                "the configuration's key `cni.dev/valid-attachments`: GC needs it",
            )
        })?;
        let listed = self.agent.get::<Attachments>("listing what is attached", path::ATTACHMENTS).await;
        let listed = listed.map_err(Failure::agent)?.attachments.into_iter();
        let of_this = listed.filter(|attachment| attachment.network == *network);
        let is_stale = |owner: &AttachmentOwner| {
            let (container, interface) = (owner.container.clone(), owner.interface.clone());
            owner.configuration == *name && !valid.contains(&Valid { container, interface })
        };
        let stale = of_this.filter(|attachment| attachment.owner.as_ref().is_some_and(is_stale));
        // "Plugins should … continue on error": whatever can be given back is.
        let mut failed = None;
        for attachment in stale {
            if let Err(failure) = self.detach(&attachment.id).await {
                failed = Some(failure);
            }
        }
        let delegated = self.delegate("GC").await;
        failed.map_or(delegated, Err)
    }

    /// Could something be attached now?
    async fn status(&self) -> Result<(), Failure> {
        let network = &self.configuration.network;
        let path = path::ATTACHABLE.replace("{network}", network.as_str());
        let what = format!("asking whether containers can be attached to network {network}");
        self.agent.get::<Attachable>(&what, &path).await.map(drop).map_err(Failure::agent)?;
        self.delegate("STATUS").await
    }

    async fn delegate(&self, command: &str) -> Result<(), Failure> {
        match &self.delegate {
            Some(delegate) => delegate.run(command).await.map(drop),
            None => Ok(()),
        }
    }

    /// The namespace of a container is not that of whoever runs this: its own interfaces would be mistaken for the container's.
    fn refuse_own(&self, namespace: &Path) -> Result<(), Failure> {
        let number = |path: &Path| -> io::Result<(u64, u64)> {
            let metadata = std::fs::metadata(path)?;
            Ok((metadata.dev(), metadata.ino()))
        };
        let theirs = number(namespace).map_err(|error| {
            let why = format!("cannot open the network namespace {}: {error}", namespace.display());
            Failure::new(Code::UnknownContainer, why)
        })?;
        let is_own = number(Path::new("/proc/self/ns/net")).is_ok_and(|own| own == theirs);
        if is_own && !self.is_own_allowed {
            let why = format!("CNI_NETNS: {} is the host's own network namespace", namespace.display());
            return Err(Failure::new(Code::Namespace, why));
        }
        Ok(())
    }

    /// After another plugin that has made the interface, this one makes a further one.
    fn refuse_taken(&self, container: &Container) -> Result<(), Failure> {
        let name = self.interface(container);
        let before = self.configuration.before.as_ref().and_then(|before| before["interfaces"].as_array());
        let is_taken = |made: &Value| {
            made["name"] == name && made["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty())
        };
        if before.is_some_and(|interfaces| interfaces.iter().any(is_taken)) {
            let why =
                format!("the configuration's key `interface`: a plugin before this one has made {name}");
            let details = "give the interface of the overlay network a name of its own, such as \"mesh0\"";
            return Err(Failure::new(Code::Configuration, why).details(details));
        }
        Ok(())
    }
}
