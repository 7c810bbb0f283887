//! The systemd check: a unit is active, as its manager says over D-Bus.
//!
//! Keys: `systemd` (the unit: `nginx.service`; without an ending it is a service), `bus` (the bus's socket; default the system
//! bus, `/run/dbus/system_bus_socket`). `active`, `reloading` and `refreshing` pass; everything else is critical, with what systemd
//! says of it (`failed (exit-code)`, `activating (auto-restart)`).

use async_trait::async_trait;
use serde::Serialize;

use super::dbus::Bus;
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::model::{ListensOn, UnixPath};

/// Where the system's bus is, unless said.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
const MANAGER: &str = "org.freedesktop.systemd1";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
/// The longest name of a unit (systemd.unit(5)).
const MAX_NAME: usize = 255;

/// Asks for the state of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Systemd {
    systemd: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bus: Option<UnixPath>,
}

impl Systemd {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let (unit, bus) = (section.required::<String>("systemd"), section.given("bus"));
        let (unit, bus) = (unit?, bus?);
        let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if unit.is_empty() || unit.len() > MAX_NAME || !unit.chars().all(allowed) {
            return Err(section.invalid(
                "systemd",
                "it is no name of a unit",
                "a unit such as \"nginx.service\"",
            ));
        }
        Ok(Self { systemd: if unit.contains('.') { unit } else { format!("{unit}.service") }, bus })
    }

    async fn state(&self) -> Result<(String, String, String), String> {
        let socket = match &self.bus {
            Some(bus) => bus.clone(),
            None => UnixPath::new(SYSTEM_BUS).map_err(|error| error.to_string())?,
        };
        let mut bus = Bus::connect(&socket).await?;
        let path = object_path(&self.systemd);
        let mut state = async |property| bus.text_property(MANAGER, &path, UNIT, property).await;
        Ok((state("ActiveState").await?, state("SubState").await?, state("LoadState").await?))
    }
}

#[async_trait]
impl Check for Systemd {
    fn describe(&self) -> String {
        format!("systemd {}", self.systemd)
    }

    fn liberty(&self) -> Option<Liberty> {
        self.bus.is_some().then_some(Liberty::Sockets)
    }

    async fn probe(&self, _instance: &ListensOn) -> Result<String, String> {
        let (active, sub, load) = self.state().await?;
        match (active.as_str(), load.as_str()) {
            ("active" | "reloading" | "refreshing", _) => Ok(format!("{active} ({sub})")),
            (_, "not-found") => Err("there is no such unit".to_owned()),
            _ => Err(format!("{active} ({sub})")),
        }
    }
}

/// Where systemd has a unit, loaded or not (sd_bus_path_encode(3)).
fn object_path(unit: &str) -> String {
    let mut path = "/org/freedesktop/systemd1/unit/".to_owned();
    for (index, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (index > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_where_systemd_has_it() {
        assert_eq!(object_path("dbus.service"), "/org/freedesktop/systemd1/unit/dbus_2eservice");
        assert_eq!(object_path("2a@b-c.timer"), "/org/freedesktop/systemd1/unit/_32a_40b_2dc_2etimer");
    }
}
