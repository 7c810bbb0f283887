//! What the kernel has to allow before it passes packets on.
//!
//! Forwarding is a setting of the whole host: it is turned on where it is off, said once, and left on, as container engines do; somebody
//! else may need it by then.

use std::io;
use std::path::Path;

/// Passes IPv4 packets on.
const FORWARD_V4: &str = "/proc/sys/net/ipv4/ip_forward";
/// The same for IPv6.
const FORWARD_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
/// Where each link's settings for IPv6 are.
const LINKS_V6: &str = "/proc/sys/net/ipv6/conf";

/// Turns forwarding on for the families that networks here have.
pub(super) fn forward(v4: bool, v6: bool) -> io::Result<()> {
    if v4 && set(Path::new(FORWARD_V4), "1")? {
        tracing::info!("turned net.ipv4.ip_forward on: containers of overlay networks need it");
    }
    if v6 && read(Path::new(FORWARD_V6))? != "1" {
        keep_advertised_routes();
        set(Path::new(FORWARD_V6), "1")?;
        tracing::info!("turned net.ipv6.conf.all.forwarding on: containers of overlay networks need it");
    }
    Ok(())
}

/// Lets packets in by a link whose source is not behind it: of clients whose own address is shown to containers here. The stricter of
/// the link's and all links' setting holds, but for 2, which goes before 1 and asks for any way back (`rp_filter` in the kernel's
/// ip-sysctl.rst).
pub(super) fn accept_any_source(link: &str) -> io::Result<()> {
    let of = |link: &str| format!("/proc/sys/net/ipv4/conf/{link}/rp_filter");
    let of_all = read(Path::new(&of("all")))?;
    set(Path::new(&of(link)), if of_all == "0" { "0" } else { "2" }).map(drop)
}

/// A host that forwards IPv6 does not listen to routers any more, unless a link says 2 (`accept_ra` in the kernel's
/// ip-sysctl.rst): without that, it would lose the default route that it was advertised.
fn keep_advertised_routes() {
    let links = std::fs::read_dir(LINKS_V6).into_iter().flatten().flatten();
    for link in links {
        let accept = link.path().join("accept_ra");
        if read(&accept).is_ok_and(|value| value == "1")
            && let Err(error) = set(&accept, "2")
        {
            tracing::warn!(link = %link.file_name().display(), %error, "IPv6 routes that routers advertise on this link may be lost");
        }
    }
}

/// Tells whether it was something else.
fn set(path: &Path, value: &str) -> io::Result<bool> {
    if read(path)? == value {
        return Ok(false);
    }
    std::fs::write(path, value).map_err(|error| explained("write", path, &error))?;
    Ok(true)
}

fn read(path: &Path) -> io::Result<String> {
    let text = std::fs::read_to_string(path).map_err(|error| explained("read", path, &error))?;
    Ok(text.trim().to_owned())
}

fn explained(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}; set it on the host", path.display()))
}
