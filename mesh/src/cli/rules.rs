//! `plexus allow`, `plexus deny` and `plexus rules`: who may talk to whom.

use std::io;

use clap::{Args, Subcommand};
use hyper::Method;
use nerve::model::{Effect, RuleName, ServiceSelector};

use super::output::{Cell, Output, Table, Tone};
use super::{Error, Reach, Result, print_change, stale_banner};
use crate::api::{self, Changed, DefaultRequest, RuleList, RuleRequest};

const ALLOW_HELP: &str = "\
FROM and TO are a service's name, `*` for everyone, or labels that instances have: `env=prod,tier!=db`. What any rule denies is
denied, whatever another allows; what none is about is the default's (`plexus rules default deny`). Who a client is, a node knows by
the address that an instance has of its own; of whom it knows nothing, only `*` is true.

Examples:
  plexus allow web api
  plexus allow 'web -> api'                 the same; quoted, or the shell takes `>` for its own
  plexus allow env=prod db --name prod-db   instances of any service with that label";

const DENY_HELP: &str = "\
As `plexus allow`, and stronger. New connections are refused at once, on every node; those that are open may go on.

Examples:
  plexus deny web db
  plexus deny '* -> db'
  plexus deny 'env=dev -> env=prod'";

const RULES_HELP: &str = "\
Examples:
  plexus rules
  plexus rules remove allow-web-to-api
  plexus rules default deny                 only what a rule allows is connected
  plexus why api --from web                 which rule decides";

const REMOVE_HELP: &str = "\
Examples:
  plexus rules remove allow-web-to-api";

const DEFAULT_HELP: &str = "\
Examples:
  plexus rules default deny                 only what a rule allows is connected
  plexus rules default allow                all but what a rule denies, as it is unless said otherwise";

/// Allow connections of some clients to some services
#[derive(Debug, Args)]
#[command(after_help = ALLOW_HELP)]
pub(super) struct Allow {
    #[command(flatten)]
    rule: NewRule,
}

/// Deny connections of some clients to some services
#[derive(Debug, Args)]
#[command(after_help = DENY_HELP)]
pub(super) struct Deny {
    #[command(flatten)]
    rule: NewRule,
}

#[derive(Debug, Args)]
struct NewRule {
    /// Whose connections, and to what: FROM TO, or 'FROM -> TO'
    #[arg(required = true, num_args = 1..=5, value_name = "FROM TO")]
    pair: Vec<String>,
    /// What it is called; made of what it says unless given
    #[arg(long)]
    name: Option<RuleName>,
    // Between the two it means nothing, as a word of its own.
    #[arg(short = '>', hide = true)]
    arrow: bool,
    #[command(flatten)]
    reach: Reach,
}

/// List the rules, remove one, or change the default
#[derive(Debug, Args)]
#[command(after_help = RULES_HELP, args_conflicts_with_subcommands = true)]
pub(super) struct Rules {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Subcommand)]
enum Action {
    Remove(Remove),
    Default(Default),
}

/// Remove a rule
#[derive(Debug, Args)]
#[command(after_help = REMOVE_HELP)]
struct Remove {
    /// Its name
    name: RuleName,
    #[command(flatten)]
    reach: Reach,
}

/// Say what holds where no rule applies
#[derive(Debug, Args)]
#[command(after_help = DEFAULT_HELP)]
struct Default {
    /// `allow` or `deny`
    default: Effect,
    #[command(flatten)]
    reach: Reach,
}

impl Allow {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        self.rule.add(Effect::Allow, out).await
    }
}

impl Deny {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        self.rule.add(Effect::Deny, out).await
    }
}

impl NewRule {
    async fn add(self, effect: Effect, out: &mut Output<'_>) -> Result {
        let what = format!("adding a rule that is to {effect}");
        let (from, to) = sides(&self.pair).map_err(|why| {
            let usage = format!("write `plexus {effect} FROM TO`, or `plexus {effect} 'FROM -> TO'`");
            Error::failed(&what, why).hint(usage)
        })?;
        let body = RuleRequest { name: self.name, effect, from, to };
        let changed: Changed = self.reach.agent().send(&what, Method::POST, api::path::RULES, &body).await?;
        print_change(out, self.reach.json, &changed)
    }
}

/// Both sides of a rule, as the words of the command line have them.
fn sides(words: &[String]) -> std::result::Result<(ServiceSelector, ServiceSelector), String> {
    let text = words.join(" ");
    let sides: Vec<&str> = match text.split_once("->") {
        Some((from, to)) => vec![from, to],
        None => text.split_whitespace().collect(),
    };
    match sides[..] {
        // `web -> api`: what stands behind `>` is a file for the shell.
        [_, "-"] | [_, "-", _] => {
            Err("the shell has taken `>` for a redirection, and written this to a file".to_owned())
        }
        [from, to] => {
            let side = |text: &str| text.parse::<ServiceSelector>().map_err(|error| error.to_string());
            Ok((side(from)?, side(to)?))
        }
        _ => Err(format!("{text:?} has not two sides")),
    }
}

impl Rules {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        match self.action {
            None => list(&self.reach, out).await,
            Some(Action::Remove(remove)) => remove.run(out).await,
            Some(Action::Default(default)) => default.run(out).await,
        }
    }
}

impl Remove {
    async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("removing rule {}", self.name);
        let path = api::path::RULE.replace("{rule}", self.name.as_str());
        let changed: Changed = self.reach.agent().send(&what, Method::DELETE, &path, &()).await?;
        print_change(out, self.reach.json, &changed)
    }
}

impl Default {
    async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("making {} the default", self.default);
        let body = DefaultRequest { default: self.default };
        let changed: Changed = self.reach.agent().send(&what, Method::PUT, api::path::RULES, &body).await?;
        print_change(out, self.reach.json, &changed)
    }
}

async fn list(reach: &Reach, out: &mut Output<'_>) -> Result {
    let answer: RuleList = reach.agent().get("listing the rules", api::path::RULES).await?;
    out.as_json(reach.json);
    out.answer(&answer, human)?;
    Ok(())
}

fn human(out: &mut Output<'_>, answer: &RuleList) -> io::Result<()> {
    stale_banner(out, answer.stale.as_ref())?;
    let mut table = Table::new(&["NAME", "EFFECT", "FROM", "TO"]);
    for rule in &answer.rules {
        let tone = if rule.effect == Effect::Deny { Tone::Bad } else { Tone::Good };
        table.row([
            Cell::from(&rule.name),
            Cell::new(rule.effect, tone),
            Cell::from(&rule.from),
            Cell::from(&rule.to),
        ]);
    }
    if !table.is_empty() {
        out.table(&table)?;
        out.line("")?;
    }
    let else_where = if table.is_empty() { "there is no rule" } else { "where no rule applies" };
    out.line(format!("{else_where}: {}", answer.default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_what_a_shell_makes_of_one_is_told() {
        let read = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            sides(&words).map(|(from, to)| format!("{from} {to}"))
        };
        for words in
            [&["web", "api"][..], &["web -> api"], &["web->api"], &["web", "->", "api"], &[" web api "]]
        {
            assert_eq!(read(words).as_deref(), Ok("web api"), "{words:?}");
        }
        assert_eq!(read(&["env=a,tier!=b", "*"]).as_deref(), Ok("env=a,tier!=b *"));
        assert!(read(&["web", "-"]).unwrap_err().contains("redirection"));
        assert!(read(&["web"]).unwrap_err().contains("two sides"));
        assert!(read(&["web", "api", "db"]).unwrap_err().contains("two sides"));
        assert!(read(&["Web", "api"]).unwrap_err().contains("no service name"));
    }
}
