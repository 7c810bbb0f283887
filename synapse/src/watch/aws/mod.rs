//! Speaking with AWS: requests to one of its services in one region, signed with the credentials that are found.
//!
//! What is asked, and what is made of an answer, is others' business.

mod access;
mod credentials;
mod provider;
mod refusal;
mod role;
mod secret;
mod sign;

use std::time::{Duration, SystemTime};

use nerve::http::{Answer, Client, Url};

pub use access::{Access, Region};
use provider::{Environment, Provider};
pub(super) use refusal::Trouble;
pub use secret::Secret;
use sign::{Request, Scope};

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(30);

/// One of its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// Machines.
    Ec2,
    /// Objects.
    S3,
}

impl Service {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::S3 => "s3",
        }
    }

    /// What a policy is to allow for what is asked here.
    fn permission(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2:DescribeInstances",
            Self::S3 => "s3:GetObject",
        }
    }

    /// Where it is in a region, unless it is said.
    pub(super) fn url(self, region: &Region, access: &Access) -> Result<Url, String> {
        match &access.endpoint {
            Some(url) => Ok(url.clone()),
            None => format!("https://{}.{region}.{}", self.as_str(), region.domain()).parse(),
        }
    }
}

/// A service in a region.
pub(super) struct Aws {
    service: Service,
    region: Region,
    client: Client,
    provider: Provider,
}

impl Aws {
    /// The service in `region`, at `url`.
    pub(super) fn new(service: Service, region: Region, url: Url, access: &Access) -> Self {
        let environment: Environment =
            Box::new(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let client = Client::new(url, access.tls.clone());
        Self { service, region, client, provider: Provider::new(access, environment) }
    }

    /// Posts a form, and returns what is answered with status 200.
    pub(super) async fn post(&self, form: String) -> Result<Answer, Trouble> {
        const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        self.ask("/", FORM, Some(form)).await
    }

    /// Gets what is at `path`, which is escaped, with status 200.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, Trouble> {
        let nothing = sign::sha256("");
        self.ask(path, ("x-amz-content-sha256", &nothing), None).await
    }

    async fn ask(&self, path: &str, header: (&str, &str), form: Option<String>) -> Result<Answer, Trouble> {
        let credentials = self.provider.credentials().await.map_err(Trouble::Refused)?;
        let url = self.client.url();
        let (whole, authority) = (format!("{}{path}", url.base()), url.authority());
        let added = sign::sign(
            &credentials,
            Scope { region: self.region.as_str(), service: self.service.as_str(), at: SystemTime::now() },
            Request {
                method: if form.is_some() { "POST" } else { "GET" },
                path: &whole,
                headers: &[("host", &authority), header],
                body: form.as_deref().unwrap_or_default(),
            },
        );
        // The client says itself which host is asked.
        let mut headers = vec![header, ("accept", "*/*")];
        headers.extend(added.iter().map(|(name, value)| (*name, value.as_str())));
        let answer = match form {
            Some(form) => self.client.post(path, &headers, form, WITHIN).await,
            None => self.client.get(path, &headers, WITHIN).await,
        };
        let answer = answer.map_err(Trouble::Silent)?;
        if answer.status == 200 {
            return Ok(answer);
        }
        let refusal = refusal::judged(answer.status, &answer.body, &credentials, self.service.permission());
        if refusal.is_of_credentials {
            self.provider.forget().await;
        }
        Err(refusal.trouble)
    }
}
