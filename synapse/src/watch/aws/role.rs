//! Credentials of a role, as AWS hands them to what runs there: an instance of EC2 by its metadata service in version 2, a container by
//! the address that its environment names.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nerve::http::{Answer, Client, FilePath, Tls, Url};
use serde::Deserialize;

use super::credentials::Credentials;
use super::secret::Secret;

/// How long an answer may take; the service is on the same machine.
const WITHIN: Duration = Duration::from_secs(5);
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// A token is used for two questions at once.
const TOKEN_SECONDS: &str = "60";
/// The longest token, role, or session token, in bytes.
const MOST: usize = 16 * 1024;

/// Where instances of EC2 are told of themselves.
pub(super) fn instance_metadata() -> Url {
    Url::http([169, 254, 169, 254].into())
}

/// Those of the instance that this is.
pub(super) async fn of_instance(metadata: &Client) -> Result<Credentials, String> {
    let failed = |why: String| format!("ask {} for the credentials of this instance: {why}", metadata.url());
    let advice = "give the watcher keys, or the agent AWS_ACCESS_KEY_ID, or the instance a role";
    let asks = [("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS)];
    let answer = metadata.put("/latest/api/token", &asks, WITHIN).await;
    let answer = answer.map_err(|why| failed(format!("{why}; if this is no instance of EC2, {advice}")))?;
    let Some(token) = text(&answer).filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic())) else {
        let advice = "see that its metadata options turn on the endpoint and IMDSv2";
        return Err(failed(format!("there is no token of IMDSv2 (status {}); {advice}", answer.status)));
    };
    let shows = [("x-aws-ec2-metadata-token", token)];
    let answer = metadata.get(ROLES, &shows, WITHIN).await.map_err(failed)?;
    let role = match text(&answer) {
        Some(roles) => roles.lines().next().unwrap_or_default().trim(),
        None if answer.status == 404 => return Err(failed(format!("it has no role; {advice}"))),
        None => return Err(failed(format!("status {} instead of a role", answer.status))),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
    if role.is_empty() || role.len() > 128 || !role.bytes().all(is_name) {
        return Err(failed("it answers with no name of a role".to_owned()));
    }
    let answer = metadata.get(&format!("{ROLES}{role}"), &shows, WITHIN).await.map_err(failed)?;
    read(&answer, format!("the instance's role {role}")).map_err(failed)
}

/// A container, by what its environment says.
pub(super) struct Container {
    client: Client,
    path: String,
    token: Option<Secret>,
    token_file: Option<FilePath>,
}

impl Container {
    /// `None`: it is none that has a role.
    pub(super) fn of(environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
        let (url, path) = match (environment(RELATIVE), environment(FULL)) {
            // Where ECS has it.
            (Some(path), _) if path.starts_with('/') => (Url::http([169, 254, 170, 2].into()), path),
            (Some(_), _) => return Err(format!("{RELATIVE} of the environment is no path")),
            (None, Some(url)) => {
                (url.parse().map_err(|why| format!("{FULL} of the environment: {why}"))?, String::new())
            }
            (None, None) => return Ok(None),
        };
        let token_file = match environment(TOKEN_FILE) {
            Some(path) => {
                let file = FilePath::absolute(PathBuf::from(path));
                Some(file.ok_or_else(|| format!("{TOKEN_FILE} of the environment is no absolute path"))?)
            }
            None => None,
        };
        let token = environment("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(Secret::new);
        Ok(Some(Self { client: Client::new(url, Tls::default()), path, token, token_file }))
    }

    pub(super) async fn credentials(&self) -> Result<Credentials, String> {
        let failed =
            |why: String| format!("ask {} for the credentials of this container: {why}", self.client.url());
        let token = match &self.token_file {
            Some(file) => {
                Some(Secret::new(file.first_line().await.map_err(|error| failed(error.to_string()))?))
            }
            None => self.token.clone(),
        };
        let shows: Vec<(&str, &str)> = token.iter().map(|token| ("authorization", token.reveal())).collect();
        let answer = self.client.get(&self.path, &shows, WITHIN).await.map_err(failed)?;
        read(&answer, "the container's role".to_owned()).map_err(failed)
    }
}

/// An answer of one line; `None`: it is another.
fn text(answer: &Answer) -> Option<&str> {
    let text = std::str::from_utf8(&answer.body).ok()?.trim();
    (answer.status == 200 && !text.is_empty() && text.len() <= MOST).then_some(text)
}

/// Nothing of it is ever shown.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answered {
    code: Option<String>,
    message: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    token: Option<String>,
    expiration: Option<String>,
}

fn read(answer: &Answer, source: String) -> Result<Credentials, String> {
    if answer.status != 200 {
        return Err(format!("status {}", answer.status));
    }
    // What serde says of a mistake may quote what is secret.
    let said: Answered = serde_json::from_slice(&answer.body)
        .map_err(|_| "there are no credentials in its answer".to_owned())?;
    if let Some(code) = said.code.filter(|code| code != "Success") {
        let message: String =
            said.message.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
        let code: String = code.chars().filter(|c| !c.is_control()).take(64).collect();
        return Err(format!("{code}: {message}"));
    }
    let (Some(id), Some(secret)) = (said.access_key_id, said.secret_access_key.map(Secret::new)) else {
        return Err("there are no credentials in its answer".to_owned());
    };
    let expires = said.expiration.map(|time| humantime::parse_rfc3339(&time)).transpose();
    let expires = expires.map_err(|_| "its credentials end at what is no time".to_owned())?;
    if expires.is_some_and(|expires| expires <= SystemTime::now()) {
        return Err(
            "its credentials have ended by the clock of this machine; see that it is right".to_owned()
        );
    }
    let token = said.token.filter(|token| !token.is_empty()).map(Secret::new);
    Ok(Credentials { id, secret, token, expires, source })
}
