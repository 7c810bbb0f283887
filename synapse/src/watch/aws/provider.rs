//! Whose keys sign: the configuration's, the environment's, or those of the role that this machine or container has, which end after
//! some hours and are asked for again before they do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::http::{Client, FilePath, Tls};
use tokio::sync::Mutex;

use super::access::{Access, Keys, SecretKey};
use super::credentials::Credentials;
use super::role;
use super::secret::Secret;

/// Roles have new ones from five minutes before the old ones end.
const EARLY: Duration = Duration::from_secs(300);

/// Variables of the environment that are not empty.
pub(super) type Environment = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Who has them.
pub(super) struct Provider {
    keys: Option<Keys>,
    environment: Environment,
    metadata: Client,
    /// Those of a role.
    held: Mutex<Option<Arc<Credentials>>>,
}

impl Provider {
    pub(super) fn new(access: &Access, environment: Environment) -> Self {
        let metadata = access.metadata.clone().unwrap_or_else(role::instance_metadata);
        Self {
            keys: access.keys.clone(),
            environment,
            metadata: Client::new(metadata, Tls::default()),
            held: Mutex::default(),
        }
    }

    /// Those that hold now, asked for anew where they would end soon.
    pub(super) async fn credentials(&self) -> Result<Arc<Credentials>, String> {
        if let Some(keys) = &self.keys {
            return configured(keys).await.map(Arc::new);
        }
        if let Some(credentials) = self.of_environment() {
            return Ok(Arc::new(credentials));
        }
        let mut held = self.held.lock().await;
        let now = SystemTime::now();
        if let Some(held) = held.as_ref().filter(|held| held.hold_at(now + EARLY)) {
            return Ok(Arc::clone(held));
        }
        match self.of_role().await {
            Ok(new) => Ok(Arc::clone(held.insert(Arc::new(new)))),
            Err(why) => held.as_ref().filter(|held| held.hold_at(now)).cloned().ok_or(why),
        }
    }

    /// Those that it gave were refused: the next ones are asked for.
    pub(super) async fn forget(&self) {
        *self.held.lock().await = None;
    }

    fn of_environment(&self) -> Option<Credentials> {
        Some(Credentials {
            id: (self.environment)("AWS_ACCESS_KEY_ID")?,
            secret: Secret::new((self.environment)("AWS_SECRET_ACCESS_KEY")?),
            token: (self.environment)("AWS_SESSION_TOKEN").map(Secret::new),
            expires: None,
            source: "the environment (AWS_ACCESS_KEY_ID)".to_owned(),
        })
    }

    async fn of_role(&self) -> Result<Credentials, String> {
        match role::Container::of(&*self.environment)? {
            Some(container) => container.credentials().await,
            None => role::of_instance(&self.metadata).await,
        }
    }
}

async fn configured(keys: &Keys) -> Result<Credentials, String> {
    let secret = match &keys.secret {
        SecretKey::File(file) => first_line(file).await?,
        SecretKey::Given(secret) => secret.clone(),
    };
    let token = match &keys.session_token_file {
        Some(file) => Some(first_line(file).await?),
        None => None,
    };
    let source = "the configuration (access_key_id)".to_owned();
    Ok(Credentials { id: keys.id.clone(), secret, token, expires: None, source })
}

async fn first_line(file: &FilePath) -> Result<Secret, String> {
    let line = file.first_line().await.map_err(|error| error.to_string())?;
    Ok(Secret::new(line.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::stub::api;

    fn ok(body: &str) -> (String, String) {
        ("200 OK\r\n".to_owned(), body.to_owned())
    }

    fn role_s(id: &str, ends_in: i64) -> (String, String) {
        let now = SystemTime::now();
        let ends = Duration::from_secs(ends_in.unsigned_abs());
        let ends = humantime::format_rfc3339_seconds(if ends_in < 0 { now - ends } else { now + ends });
        ok(&format!(
            r#"{{"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "{id}", "SecretAccessKey": "s3cret", "Token": "t0ken", "Expiration": "{ends}"}}"#
        ))
    }

    fn provider(url: &str, variables: &[(&str, &str)]) -> Provider {
        let access = Access { metadata: Some(url.parse().unwrap()), ..Access::default() };
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let environment =
            move |name: &str| Some(variables.iter().find(|(known, _)| known == name)?.1.clone());
        Provider::new(&access, Box::new(environment))
    }

    #[tokio::test]
    async fn an_instance_s_role_is_asked_for_by_a_token_and_again_before_it_ends() {
        let role = |id: &str, ends| vec![ok("t"), ok("web-role\n"), role_s(id, ends)];
        let answers = [role("FIRST", 299), role("SECOND", 7200)].concat();
        let (url, serve) = api(answers).await;
        let provider = provider(&url, &[]);
        let asks = async {
            let mut ids = Vec::new();
            for _ in 0..3 {
                let credentials = provider.credentials().await.unwrap();
                assert_eq!(
                    (credentials.secret.reveal(), credentials.token.as_ref().unwrap().reveal()),
                    ("s3cret", "t0ken")
                );
                assert_eq!(credentials.source, "the instance's role web-role");
                ids.push(credentials.id.clone());
            }
            ids
        };
        let (ids, asked) = tokio::join!(asks, serve);
        assert_eq!(ids, ["FIRST", "SECOND", "SECOND"]);
        assert!(
            asked[0].starts_with("PUT /latest/api/token ")
                && asked[0].contains("x-aws-ec2-metadata-token-ttl-seconds: "),
            "{}",
            asked[0]
        );
        for (at, path) in [(1, ""), (2, "web-role")] {
            assert!(
                asked[at].starts_with(&format!("GET /latest/meta-data/iam/security-credentials/{path} ")),
                "{}",
                asked[at]
            );
            assert!(asked[at].contains("x-aws-ec2-metadata-token: t\r\n"), "{}", asked[at]);
        }
    }

    #[tokio::test]
    async fn credentials_of_a_role_hold_to_their_end_while_nobody_gives_others_and_no_longer() {
        let (url, serve) = api(vec![ok("t"), ok("r"), role_s("OLD", 3), role_s("not a token", 1)]).await;
        let provider = provider(&url, &[]);
        let asks = async {
            assert_eq!(provider.credentials().await.unwrap().id, "OLD");
            // What is no token is no answer, and the old ones still hold.
            assert_eq!(provider.credentials().await.unwrap().id, "OLD");
        };
        let ((), _) = tokio::join!(asks, serve);
        provider.forget().await;
        let why = provider.credentials().await.unwrap_err();
        assert!(why.contains("instance") && !why.contains("s3cret"), "{why}");
    }

    #[tokio::test]
    async fn what_is_no_role_is_told_with_what_to_do() {
        let refused = |status: &str| (format!("{status}\r\n"), String::new());
        for (answers, said) in [
            (vec![refused("403 Forbidden")], "metadata"),
            (vec![ok("t"), refused("404 Not Found")], "has no role"),
            (vec![ok("t"), ok("a/../b")], "no name of a role"),
            (
                vec![
                    ok("t"),
                    ok("r"),
                    ok(r#"{"Code": "AssumeRoleUnauthorizedAccess", "Message": "no trust"}"#),
                ],
                "no trust",
            ),
            (vec![ok("t"), ok("r"), ok(r#"{"AccessKeyId": "s3cret"}"#)], "no credentials"),
            (vec![ok("t"), ok("r"), role_s("OVER", -5)], "ended"),
        ] {
            let (url, serve) = api(answers).await;
            let provider = provider(&url, &[]);
            let (told, _) = tokio::join!(provider.credentials(), serve);
            let told = told.unwrap_err();
            assert!(told.contains(said) && !told.contains("s3cret"), "{told}");
        }
    }

    #[tokio::test]
    async fn the_environment_goes_before_roles_and_a_container_s_before_the_instance_s() {
        let keys = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "s")];
        assert_eq!(provider("http://127.0.0.1:1", &keys).credentials().await.unwrap().id, "ENV");
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "pod\n").unwrap();
        let (url, serve) = api(vec![role_s("POD", 7200)]).await;
        let full = format!("{url}/v1/credentials");
        let variables = [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", full.as_str()),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.path().to_str().unwrap()),
        ];
        let provider = provider("http://127.0.0.1:1", &variables);
        let (credentials, asked) = tokio::join!(provider.credentials(), serve);
        assert_eq!(credentials.unwrap().id, "POD");
        assert!(
            asked[0].starts_with("GET /v1/credentials ") && asked[0].contains("authorization: pod\r\n"),
            "{}",
            asked[0]
        );
    }

    #[tokio::test]
    async fn configured_keys_are_read_from_their_file_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text =
            format!("access_key_id = \"CONFIG\"\nsecret_access_key_file = \"{}\"", file.path().display());
        let access = nerve::document::Document::parse("x", &text).unwrap().decode(Access::read).unwrap();
        let provider = Provider::new(&access, Box::new(|_| None));
        for secret in ["one", "two"] {
            std::fs::write(file.path(), format!("{secret}\n")).unwrap();
            assert_eq!(provider.credentials().await.unwrap().secret.reveal(), secret);
        }
    }
}
