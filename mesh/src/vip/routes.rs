//! The task that keeps the ranges local on this node.
//!
//! It looks at the kernel's routes when it starts and whenever one changes that concerns a range; on a slow tick it adds
//! its own again, which costs nothing where they are there.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::Prefix;
use nerve::tasks::Tasks;
use tokio::sync::watch;

use super::netlink::{Event, Netlink};
use super::plan::{Step, concerns, obsolete, refusal, step};
use super::{Config, Handle, Metrics, Problems, Usable};

/// How often it is looked whether the routes are there, whatever the kernel told.
const TICK: Duration = Duration::from_secs(5);
/// Events that come within this are one.
const SETTLE: Duration = Duration::from_millis(50);
/// Lets a program bind an IPv6 address that no interface has. For IPv4 the local route is enough (`inet_bind` asks the
/// routes, `inet6_bind` the interfaces).
const NONLOCAL_V6: &str = "/proc/sys/net/ipv6/ip_nonlocal_bind";

/// Starts it.
pub(super) fn start(
    config: &Config,
    tell: watch::Sender<Usable>,
    handle: Handle,
    metrics: Metrics,
    tasks: &Tasks,
) {
    let (ranges, tell) = (Usable::from(&config.ranges[..]), Arc::new(tell));
    tasks.spawn_until_stopped("virtual address routes", move || {
        let keeper = Keeper {
            ranges: ranges.clone(),
            tell: Arc::clone(&tell),
            handle: handle.clone(),
            metrics: metrics.clone(),
        };
        keeper.run()
    });
}

struct Keeper {
    ranges: Arc<[Prefix]>,
    tell: Arc<watch::Sender<Usable>>,
    handle: Handle,
    metrics: Metrics,
}

/// Why a range cannot be used, in words, by range.
type Refused = BTreeMap<Prefix, String>;

impl Keeper {
    async fn run(self) {
        loop {
            match Netlink::open() {
                Ok((connection, mut netlink)) => tokio::select! {
                    () = connection => tracing::warn!("the kernel ended the netlink connection; it is opened again"),
                    () = self.follow(&mut netlink) => {}
                },
                Err(error) => {
                    let why = format!("the kernel's routes cannot be read ({error})");
                    self.publish(self.ranges.iter().map(|range| (*range, off(*range, &why))).collect());
                }
            }
            tokio::time::sleep(TICK).await;
        }
    }

    async fn follow(&self, netlink: &mut Netlink) {
        let mut refused = self.reconcile(netlink).await;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = netlink.event() => match event {
                    Some(event) if !self.matters(event) => continue,
                    Some(_) => self.settle(netlink).await,
                    None => return,
                },
                _ = tick.tick() => if refused.is_empty() && self.all_there(netlink).await {
                    continue;
                },
            }
            refused = self.reconcile(netlink).await;
        }
    }

    fn matters(&self, event: Event) -> bool {
        match event {
            Event::Route(destination) => concerns(&self.ranges, destination),
            Event::Loopback => true,
        }
    }

    /// Events come in bursts: takes those of this one.
    async fn settle(&self, netlink: &mut Netlink) {
        let burst = async { while netlink.event().await.is_some() {} };
        // That it times out is the usual end.
        let _ = tokio::time::timeout(SETTLE, burst).await;
    }

    /// Adds each route again; tells whether none was missing.
    async fn all_there(&self, netlink: &Netlink) -> bool {
        for range in &*self.ranges {
            if !matches!(netlink.add(*range).await, Ok(false)) {
                return false;
            }
        }
        true
    }

    async fn reconcile(&self, netlink: &Netlink) -> Refused {
        let refused = match netlink.routes().await {
            Ok(routes) => {
                for gone in obsolete(&self.ranges, &routes) {
                    match netlink.remove(gone).await {
                        Ok(()) => {
                            tracing::info!(range = %gone, "no longer local: it is not configured any more")
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a route of an earlier configuration stays behind")
                        }
                    }
                }
                let mut refused = Refused::new();
                for range in &*self.ranges {
                    if let Err(why) = self.make_local(netlink, *range, step(*range, &routes)).await {
                        refused.insert(*range, why);
                    }
                }
                refused
            }
            Err(error) => self.ranges.iter().map(|range| (*range, off(*range, &error.to_string()))).collect(),
        };
        self.publish(refused.clone());
        refused
    }

    async fn make_local(&self, netlink: &Netlink, range: Prefix, step: Step) -> Result<(), String> {
        match step {
            Step::Nothing => {}
            Step::Refuse(collision) => return Err(refusal(&collision)),
            Step::Add => {
                netlink.add(range).await.map_err(|error| off(range, &advise(range, &error)))?;
                self.metrics.routes_added.inc();
                tracing::info!(%range, "virtual addresses are local here");
            }
        }
        if range.is_ipv4() {
            return Ok(());
        }
        allow_nonlocal_v6(Path::new(NONLOCAL_V6)).map_err(|error| {
            off(
                range,
                &format!(
                    "{NONLOCAL_V6} cannot be set ({error}); set net.ipv6.ip_nonlocal_bind = 1 by sysctl"
                ),
            )
        })
    }

    fn publish(&self, refused: Refused) {
        let usable: Usable =
            self.ranges.iter().filter(|range| !refused.contains_key(range)).copied().collect();
        self.metrics.ranges_local.set(i64::try_from(usable.len()).unwrap_or(i64::MAX));
        Problems::set(&self.handle.problems.routes, refused.into_values().collect());
        self.tell.send_if_modified(|known| {
            let changed = **known != *usable;
            *known = usable;
            changed
        });
        self.handle.judged.send_replace(true);
    }
}

fn off(range: Prefix, why: &str) -> String {
    format!("virtual addresses of {range} are off on this node: {why}")
}

fn advise(range: Prefix, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return format!("the route `local {range} dev lo` cannot be made ({error})");
    }
    let family = if range.is_ipv4() { "ip" } else { "ip -6" };
    format!(
        "a route needs CAP_NET_ADMIN; give it to the agent, or run `{family} route add local {range} dev lo` before it starts"
    )
}

fn allow_nonlocal_v6(file: &Path) -> io::Result<()> {
    if std::fs::read_to_string(file)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(file, "1")
}
