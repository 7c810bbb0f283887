//! From the tables of the file to what each room is told.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use nerve::period::Period;
use nerve::registrar;
use nerve::source::{DockerAddress, DockerConfig, Local, SmartstackConfig};
use nerve::store::StoreConfig;

use super::identity::IdentityError;
use super::{Config, Nerve, Node};
use crate::link_local::LinkLocal;
use crate::{dns, docker, identity, ingress, mtls, overlay, proxy, steer, vip};

impl Node {
    /// What definitions of instances take from the node.
    #[must_use]
    pub fn local(&self) -> Local {
        Local { node: self.name.clone(), address: self.address }
    }
}

impl Config {
    /// What the store's backend is told.
    #[must_use]
    pub fn store(&self) -> StoreConfig {
        let store = &self.store;
        let from_file = store.password_file.as_ref().map(|file| &file.secret);
        StoreConfig {
            url: store.url.clone(),
            prefix: Some(store.prefix.clone()),
            username: store.username.clone(),
            password: store.password.as_ref().or(from_file).map(|secret| secret.0.clone()),
            ca_file: store.ca_file.clone(),
            cert_file: store.cert_file.clone(),
            key_file: store.key_file.clone(),
            request_timeout: store.request_timeout.get(),
        }
    }

    /// What the admin interface is told.
    #[must_use]
    pub fn admin(&self) -> crate::admin::Config {
        self.admin.for_server()
    }

    /// What identity is told.
    ///
    /// # Errors
    /// The file with the token cannot be read, or has none; or there are two ways.
    pub fn identity(&self) -> Result<identity::Config, IdentityError> {
        Ok(identity::Config {
            node: self.node.name.clone(),
            state_dir: self.state_dir.clone(),
            means: self.identity.means(self.node.address)?,
        })
    }

    /// What mutual TLS between nodes is told.
    #[must_use]
    pub fn mtls(&self) -> mtls::Config {
        mtls::Config {
            node: self.node.name.clone(),
            mode: self.mtls.mode,
            listen: self.mtls.listen(self.node.address),
            local_links: self.mtls.local_links.as_slice().into(),
        }
    }

    /// What the registrar is told.
    #[must_use]
    pub fn registrar(&self) -> registrar::Config {
        registrar::Config {
            region: self.node.region.clone(),
            zone: self.node.zone.clone(),
            signer_port: self.identity.listen(self.node.address).first().map(SocketAddr::port),
            session_ttl: self.store.session_ttl,
            max_probes: self.checks.max_probes,
            damping: self.checks.damping(),
            ..registrar::Config::new(self.node.name.clone(), self.node.address, env!("CARGO_PKG_VERSION"))
        }
    }

    /// What the data plane is told.
    #[must_use]
    pub fn proxy(&self) -> proxy::Config {
        proxy::Config {
            threads: NonZeroUsize::new(self.proxy.threads),
            connect_timeout: self.proxy.connect_timeout.get(),
            connect_deadline: self.proxy.connect_deadline.get(),
            idle_timeout: self.proxy.idle_timeout.map(Period::get),
            max_connections: self.proxy.max_connections,
            // Another one on each node, so that hash policies spread them.
            unix_clients: self.node.address,
            trusted_proxies: self.proxy.trusted_proxies.as_slice().into(),
            udp: proxy::UdpOptions {
                idle_timeout: self.proxy.udp_idle_timeout.get(),
                max_sessions: self.proxy.max_udp_sessions,
            },
            tcp: proxy::TcpOptions {
                keepalive: self.proxy.keepalive.get(),
                keepalive_interval: self.proxy.keepalive_interval.get(),
                user_timeout: self.proxy.user_timeout.map(Period::get),
                defer_accept: self.proxy.defer_accept,
                send_buffer: self.proxy.send_buffer,
                receive_buffer: self.proxy.receive_buffer,
                source_addresses: self.proxy.source_addresses.clone(),
            },
        }
    }

    /// What steering is told.
    #[must_use]
    pub fn steer(&self) -> steer::Config {
        steer::Config {
            node: self.node.name.clone(),
            address: self.node.address,
            mark: self.proxy.transparent_mark,
            table: self.proxy.transparent_table,
        }
    }

    /// What ingress is told.
    #[must_use]
    pub fn ingress(&self) -> ingress::Config {
        let localhost = self.ingress.localhost.iter().map(|port| ingress::LocalPort {
            service: port.service.clone(),
            listen: port.listen.for_ingress(),
            target: port.target.clone(),
        });
        ingress::Config {
            node: self.node.name.clone(),
            listen: self.ingress.listen.clone(),
            localhost: localhost.collect(),
            drain: self.drain.deadline.get(),
        }
    }

    /// What virtual addresses are told.
    #[must_use]
    pub fn vip(&self) -> vip::Config {
        vip::Config {
            node: self.node.name.clone(),
            ranges: self.vip.range.clone(),
            release_after: self.vip.release_after.get(),
        }
    }

    /// What overlay networks are told; `None` where this node takes part in none.
    #[must_use]
    pub fn overlay(&self) -> Option<overlay::Config> {
        self.overlay.enabled.then(|| overlay::Config {
            node: self.node.name.clone(),
            address: self.node.address,
            default: self.overlay.default.clone(),
            port: self.overlay.port.get(),
            encryption_port: self.overlay.encryption_port.get(),
            key_lifetime: self.overlay.key_lifetime.get(),
            lease: self.overlay.lease.get(),
            fast_path: self.overlay.fast_path,
            state_dir: self.state_dir.clone(),
        })
    }

    /// What Docker's driver is told; `None` where Docker is not served, or there is no network to attach containers to.
    #[must_use]
    pub fn docker(&self) -> Option<docker::Config> {
        let socket = self.docker.plugin.clone();
        let is_served = self.docker.enabled && self.overlay.enabled;
        is_served.then(|| docker::Config { socket, state_dir: self.state_dir.clone() })
    }

    /// Which Docker is asked for containers; `None` where none is.
    #[must_use]
    pub fn docker_source(&self) -> Option<DockerConfig> {
        let docker = &self.docker;
        let usual = if self.overlay.enabled { DockerAddress::Overlay } else { DockerAddress::Published };
        (docker.enabled && docker.instances).then(|| DockerConfig {
            api: docker.api.clone(),
            driver: docker.driver().to_owned(),
            address: docker.address.unwrap_or(usual),
            registrator: docker.registrator,
        })
    }

    /// Which configuration of Nerve's is read; `None`: none is.
    #[must_use]
    pub fn smartstack_source(&self) -> Option<SmartstackConfig> {
        let Nerve { file, instance_id } = self.sources.nerve.clone()?;
        Some(SmartstackConfig { file, instance_id })
    }

    /// The link-local address that this node is to give itself.
    #[must_use]
    pub fn link_local(&self) -> Option<LinkLocal> {
        self.dns.link_local.filter(|_| self.dns.enabled)
    }

    /// What the name server is told; `None` where it does not run.
    #[must_use]
    pub fn dns(&self) -> Option<dns::Config> {
        self.dns.enabled.then(|| self.dns.for_server(&self.node))
    }
}
