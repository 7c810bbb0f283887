//! The ZooKeeper check: `ruok`, or `srvr` for whether it serves, and in which role.
//!
//! Keys: `zookeeper = true` for where the instance listens, or a port; `role`, a role or a list of them. `ruok` says that the
//! process runs; one that has lost its ensemble says so as well, while `srvr` does not. A server answers only words that its
//! `4lw.commands.whitelist` has, which is `srvr` alone unless configured.

use async_trait::async_trait;
use serde::Serialize;

use super::connect::Target;
use super::wire::Wire;
use super::{Check, Liberty};
use crate::document::{FromValue, Mismatch, Reported, Section, Value};
use crate::model::ListensOn;

/// The roles that `srvr` names, and the word for all of them.
const ROLES: [&str; 5] = ["leader", "follower", "observer", "standalone", "any"];

/// Asks a ZooKeeper server by its four-letter words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Zookeeper {
    #[serde(flatten)]
    target: Target,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Roles>,
}

/// Roles that are well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Roles(Vec<String>);

impl Zookeeper {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let (target, role) = (Target::read(section, "zookeeper"), section.given::<Roles>("role"));
        Ok(Self { target: target?, role: role? })
    }
}

#[async_trait]
impl Check for Zookeeper {
    fn describe(&self) -> String {
        match &self.role {
            None => self.target.to_string(),
            Some(Roles(roles)) => format!("{} role {}", self.target, roles.join(",")),
        }
    }

    fn liberty(&self) -> Option<Liberty> {
        self.target.liberty()
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        let mut wire = Wire::connect(&self.target, instance).await?;
        let word = if self.role.is_some() { "srvr" } else { "ruok" };
        wire.send(word.as_bytes()).await?;
        let answer = wire.rest().await?;
        if answer.contains("not in the whitelist") {
            return Err(format!(
                "it does not answer {word}: add it to its 4lw.commands.whitelist{}",
                if word == "ruok" { ", or ask for a `role`" } else { "" }
            ));
        }
        judge(self.role.as_ref(), &answer)
    }
}

fn judge(wanted: Option<&Roles>, answer: &str) -> Result<String, String> {
    let first = answer.lines().next().unwrap_or_default();
    let Some(Roles(wanted)) = wanted else {
        return match answer {
            "imok" => Ok("imok".to_owned()),
            "" => Err("ruok: the server closed the connection instead of answering".to_owned()),
            _ => Err(format!("ruok: {first:?} instead of imok")),
        };
    };
    let Some(role) = answer.lines().find_map(|line| line.strip_prefix("Mode: ")) else {
        return Err(format!("srvr: {first:?}, and no role"));
    };
    if wanted.iter().any(|wanted| wanted == role || wanted == "any") {
        Ok(format!("role {role}"))
    } else {
        Err(format!("role {role}, which is not {}", wanted.join(" or ")))
    }
}

impl FromValue for Roles {
    fn expected() -> String {
        format!("one of `{}`, or a list of them", ROLES.join("`, `"))
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let role = |value: &Value| match value.as_text() {
            Some(text) if ROLES.contains(&text) => Ok(text.to_owned()),
            Some(text) => Err(value.mismatch(format_args!("{text:?} is no role"), Self::expected())),
            None => Err(value.wrong_kind(Self::expected())),
        };
        match value.as_list() {
            Some([]) => Err(value.mismatch("it is empty: no role would ever do", Self::expected())),
            Some(values) => values.iter().map(role).collect::<Result<_, _>>().map(Self),
            None => role(value).map(|role| Self(vec![role])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_what_the_server_says_of_itself() {
        let srvr = "Zookeeper version: 3.8.0\nLatency min/avg/max: 0/0.0/0\nMode: follower\nNode count: 5\n";
        let wanted = |roles: &[&str]| Roles(roles.iter().map(|&role| role.to_owned()).collect());
        assert_eq!(judge(Some(&wanted(&["leader", "follower"])), srvr), Ok("role follower".to_owned()));
        assert_eq!(judge(Some(&wanted(&["any"])), srvr), Ok("role follower".to_owned()));
        let other = judge(Some(&wanted(&["leader"])), srvr).unwrap_err();
        assert_eq!(other, "role follower, which is not leader");
        let lost = "This ZooKeeper instance is not currently serving requests\n";
        let lost = judge(Some(&wanted(&["any"])), lost).unwrap_err();
        assert!(lost.contains("not currently serving"), "{lost}");
        assert!(judge(None, "imok").is_ok() && judge(None, srvr).is_err() && judge(None, "").is_err());
    }
}
