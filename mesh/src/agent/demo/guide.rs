//! What the demo prints: lines that work when they are pasted.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::instances::RESTART_AFTER;

/// A node as the reader of the guide can reach it.
#[derive(Debug, Clone)]
pub(super) struct GuideNode {
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) admin: SocketAddr,
    pub(super) dns: SocketAddr,
}

/// A running instance.
#[derive(Debug, Clone)]
pub(super) struct GuideInstance {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) pid: u32,
    pub(super) address: SocketAddr,
}

/// Everything that the guide speaks of. `instances` are the ones of `web`.
#[derive(Debug)]
pub(super) struct Guide<'a> {
    pub(super) program: &'a Path,
    pub(super) nodes: &'a [GuideNode],
    pub(super) published: u16,
    pub(super) web: &'a [GuideInstance],
    /// Instances are in network namespaces of their own, which this machine does not reach.
    pub(super) has_containers: bool,
    pub(super) tools: Tools,
}

/// Which of the tools that the lines use are installed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tools {
    pub(super) curl: bool,
    pub(super) dig: bool,
    pub(super) nft: bool,
    pub(super) nsenter: bool,
}

impl Tools {
    /// Looks along `PATH`.
    pub(super) fn find() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
        let [curl, dig, nft, nsenter] = ["curl", "dig", "nft", "nsenter"].map(installed);
        Self { curl, dig, nft, nsenter }
    }
}

impl Guide<'_> {
    /// The whole text.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let nodes: Vec<_> = self.nodes.iter().map(|n| format!("{} ({})", n.name, n.address)).collect();
        let plural = if nodes.len() == 1 { "node" } else { "nodes" };
        writeln!(out, "\nA mesh is up: {plural} {}.", nodes.join(", "))?;
        writeln!(
            out,
            "Services web (3 instances) and api (2); web is published on port {} of every node.",
            self.published
        )?;
        if self.has_containers {
            writeln!(
                out,
                "Instances are containers: each has a network namespace of its own, on an overlay network between the nodes."
            )?;
        }
        writeln!(out)?;
        writeln!(out, "Try, in another terminal:\n")?;
        self.write_published_port(out)?;
        self.write_names(out)?;
        self.write_commands(out)?;
        self.write_containers(out)?;
        self.write_failures(out)?;
        writeln!(out, "Ctrl-C ends it all and leaves nothing behind.")
    }

    fn write_published_port(&self, out: &mut String) -> std::fmt::Result {
        if !self.tools.curl {
            writeln!(out, "  # curl is not installed here; any HTTP client does for the addresses below")?;
        }
        for node in self.nodes {
            let instances = self.web.iter().filter(|instance| instance.node == node.name).count();
            writeln!(
                out,
                "  curl http://{}   # node {} runs {instances} of web's instances",
                SocketAddr::new(node.address, self.published),
                node.name
            )?;
        }
        writeln!(out)
    }

    fn write_names(&self, out: &mut String) -> std::fmt::Result {
        let Some(node) = self.nodes.last() else { return Ok(()) };
        if self.tools.dig {
            let server = if node.dns.port() == 53 {
                format!("@{}", node.dns.ip())
            } else {
                format!("@{} -p {}", node.dns.ip(), node.dns.port())
            };
            writeln!(out, "  dig +short {server} web.mesh.internal")?;
            writeln!(out, "  dig +short {server} api.mesh.internal SRV")?;
        } else {
            writeln!(
                out,
                "  # dig is not installed here; this shows what the DNS server on {} answers",
                node.dns
            )?;
        }
        writeln!(out, "  {}\n", self.plexus("resolve web.mesh.internal", node))
    }

    fn write_commands(&self, out: &mut String) -> std::fmt::Result {
        let Some(node) = self.nodes.first() else { return Ok(()) };
        for command in ["services", "endpoints web", "nodes", "why web"] {
            writeln!(out, "  {}", self.plexus(command, node))?;
        }
        writeln!(out)
    }

    fn write_containers(&self, out: &mut String) -> std::fmt::Result {
        let (Some(node), [first, .., last], true) = (self.nodes.last(), self.web, self.has_containers) else {
            return Ok(());
        };
        if self.tools.curl {
            writeln!(
                out,
                "  # By a node that runs none of them. Who is asked sees that node, or its client, as you like."
            )?;
            let client = format!("curl http://{}/client", SocketAddr::new(node.address, self.published));
            writeln!(out, "  {client}")?;
            writeln!(out, "  {}", self.plexus("set web client_address=transparent", node))?;
            writeln!(out, "  {client}\n")?;
        }
        writeln!(
            out,
            "  # Containers reach each other by their own addresses, on whichever nodes they are."
        )?;
        for command in ["network inspect default", "attachments"] {
            writeln!(out, "  {}", self.plexus(command, node))?;
        }
        if let Some(inside) = self.inside(first) {
            writeln!(
                out,
                "  {inside}curl http://{}   # from {} on node {} to {} on node {}",
                last.address, first.name, first.node, last.name, last.node
            )?;
        }
        writeln!(out)
    }

    /// What runs a program where an instance is reached, if there is a way.
    fn inside(&self, instance: &GuideInstance) -> Option<String> {
        match (self.tools.curl, self.has_containers, self.tools.nsenter) {
            (true, true, true) => Some(format!("nsenter --net=/proc/{}/ns/net ", instance.pid)),
            (true, false, _) => Some(String::new()),
            _ => None,
        }
    }

    fn write_failures(&self, out: &mut String) -> std::fmt::Result {
        let (Some(node), [first, .., last]) = (self.nodes.first(), self.web) else { return Ok(()) };
        let published = SocketAddr::new(node.address, self.published);
        writeln!(
            out,
            "  # Kill an instance: connections go to the others. It is started again after {} s.",
            RESTART_AFTER.as_secs()
        )?;
        writeln!(out, "  kill -9 {}   # {} on node {}", last.pid, last.name, last.node)?;
        if self.tools.curl {
            writeln!(out, "  for i in 1 2 3 4 5 6; do curl -s http://{published}; done")?;
        }
        writeln!(out, "  {}\n", self.plexus("why web", node))?;
        writeln!(out, "  # Freeze one, and let it go on: its health check notices both.")?;
        writeln!(out, "  kill -STOP {}   # {} on node {}", first.pid, first.name, first.node)?;
        writeln!(out, "  kill -CONT {}", first.pid)?;
        if let Some(inside) = self.inside(first) {
            writeln!(out, "\n  # Or let its health check fail, and pass again.")?;
            writeln!(out, "  {inside}curl -X POST http://{}/fail", first.address)?;
            writeln!(out, "  {inside}curl -X POST http://{}/heal", first.address)?;
        }
        writeln!(out)
    }

    fn plexus(&self, command: &str, node: &GuideNode) -> String {
        format!("{} {command} --admin http://{}", shell_word(&self.program.to_string_lossy()), node.admin)
    }
}

/// `text` as a shell reads it back, quoted only where it must be.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_in_an_odd_place_is_quoted() {
        assert_eq!(shell_word("/usr/bin/plexus"), "/usr/bin/plexus");
        assert_eq!(shell_word("/my dir/it's"), r"'/my dir/it'\''s'");
    }
}
