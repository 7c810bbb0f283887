//! AWS, as far as an agent asks it: `DescribeInstances` of EC2, objects of S3, and the metadata service that hands out credentials. It
//! believes no signature that it has not made itself.

mod signature;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::api::{Answer, Asked, Speaks, lock};
use signature::time;

/// The token of the metadata service.
const TOKEN: &str = "AQAEA-token==";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// The role of the instance.
pub const ROLE: &str = "plexus-role";
/// The region that all of it is in.
pub const REGION: &str = "eu-west-1";

/// The account.
#[derive(Debug, Default)]
pub struct Aws(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    instances: Vec<Instance>,
    objects: BTreeMap<String, String>,
    /// How long credentials hold; each time that they are asked for there are others.
    hold: Duration,
    credentials: Vec<Credentials>,
    refuses: Option<(u16, String)>,
    described: usize,
}

#[derive(Debug, Clone)]
struct Credentials {
    id: String,
    secret: String,
    token: String,
    until: SystemTime,
}

/// An instance of EC2.
#[derive(Debug, Clone)]
pub struct Instance {
    /// `i-…`.
    pub id: &'static str,
    /// `running` and such.
    pub state: &'static str,
    /// Its private address; none, or what is none.
    pub address: &'static str,
    /// The value of its tag `role`.
    pub role: &'static str,
}

impl Aws {
    /// An account whose role's credentials hold so long.
    #[must_use]
    pub fn new(hold: Duration) -> Self {
        Self(Mutex::new(State { hold, ..State::default() }))
    }

    /// These are its instances from now on.
    pub fn runs(&self, instances: &[Instance]) {
        lock(&self.0).instances = instances.to_vec();
    }

    /// Puts an object, by its bucket and key, `/bucket/key`.
    pub fn put(&self, path: &str, text: &str) {
        lock(&self.0).objects.insert(path.to_owned(), text.to_owned());
    }

    /// Everything is refused with this status and code from now on; or nothing is.
    pub fn refuse(&self, refusal: Option<(u16, &str)>) {
        lock(&self.0).refuses = refusal.map(|(status, code)| (status, code.to_owned()));
    }

    /// How many credentials were handed out.
    #[must_use]
    pub fn handed_out(&self) -> usize {
        lock(&self.0).credentials.len()
    }

    /// How often a page of instances was asked for and answered.
    #[must_use]
    pub fn described(&self) -> usize {
        lock(&self.0).described
    }
}

impl State {
    fn metadata(&mut self, asked: &Asked) -> Answer {
        let is_put = asked.method == "PUT" && asked.path == "/latest/api/token";
        if is_put {
            let seconds: u32 = asked.header("x-aws-ec2-metadata-token-ttl-seconds").parse().unwrap_or(0);
            let is_good = (1..=21_600).contains(&seconds);
            return if is_good {
                Answer::Whole(200, TOKEN.to_owned())
            } else {
                Answer::Whole(400, String::new())
            };
        }
        if asked.header("x-aws-ec2-metadata-token") != TOKEN {
            return Answer::Whole(401, String::new());
        }
        match asked.path.strip_prefix(ROLES) {
            Some("") => Answer::Whole(200, ROLE.to_owned()),
            Some(ROLE) => Answer::Whole(200, self.hand_out()),
            _ => Answer::Whole(404, String::new()),
        }
    }

    fn hand_out(&mut self) -> String {
        let number = self.credentials.len();
        let credentials = Credentials {
            id: format!("ASIAEXAMPLE{number}"),
            secret: format!("s3cret/{number}"),
            token: format!("t0ken/{number}=="),
            until: SystemTime::now() + self.hold,
        };
        let said = json!({
            "Code": "Success", "LastUpdated": time(SystemTime::now()), "Type": "AWS-HMAC", "AccessKeyId": credentials.id,
            "SecretAccessKey": credentials.secret, "Token": credentials.token, "Expiration": time(credentials.until),
        });
        self.credentials.push(credentials);
        said.to_string()
    }

    /// Why it is refused.
    fn refusal(&self, service: &str, asked: &Asked) -> Option<(u16, String)> {
        let id = signature::id(asked);
        let Some(known) = self.credentials.iter().find(|known| Some(known.id.as_str()) == id) else {
            return Some((401, "AuthFailure".to_owned()));
        };
        let is_signed = asked.header("x-amz-security-token") == known.token
            && signature::is_right(asked, service, REGION, &known.secret);
        match is_signed {
            false => Some((403, "SignatureDoesNotMatch".to_owned())),
            true if known.until <= SystemTime::now() => Some((400, "RequestExpired".to_owned())),
            true => self.refuses.clone(),
        }
    }

    /// `DescribeInstances`, a page of one instance after the other.
    fn describe(&mut self, asked: &Asked) -> Answer {
        let parameter = |name: &str| asked.parameter(name).unwrap_or_default();
        if (parameter("Action").as_str(), parameter("Version").as_str())
            != ("DescribeInstances", "2016-11-15")
        {
            return refused(400, "InvalidAction");
        }
        let mut filters = BTreeMap::new();
        for number in 1.. {
            let Some(name) = asked.parameter(&format!("Filter.{number}.Name")) else { break };
            filters.insert(name, parameter(&format!("Filter.{number}.Value.1")));
        }
        let is_it = |instance: &&Instance| {
            filters.iter().all(|(name, value)| match name.as_str() {
                "tag:role" => instance.role == value,
                "instance-state-name" => instance.state == value,
                _ => false,
            })
        };
        let all: Vec<&Instance> = self.instances.iter().filter(is_it).collect();
        let from: usize = asked
            .parameter("NextToken")
            .and_then(|token| token.strip_prefix("from+/=")?.parse().ok())
            .unwrap_or(0);
        let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\n\
                        <requestId>8f7724cf</requestId>\n<reservationSet>"
            .to_owned();
        for Instance { id, state, address, role } in all.iter().skip(from).take(1) {
            let address = if address.is_empty() {
                String::new()
            } else {
                format!("<privateIpAddress>{address}</privateIpAddress>")
            };
            let _ = write!(
                text,
                "<item><reservationId>r-1</reservationId><ownerId>123456789012</ownerId><groupSet/><instancesSet><item><instanceId>{id}</instanceId>\
                 <imageId>ami-1</imageId><instanceState><code>16</code><name>{state}</name></instanceState><privateDnsName>ip-1</privateDnsName>{address}\
                 <placement><availabilityZone>eu-west-1a</availabilityZone><groupName/><tenancy>default</tenancy></placement>\
                 <tagSet><item><key>role</key><value>{role}</value></item><item><key>Name</key><value>a &amp; b</value></item></tagSet></item></instancesSet></item>"
            );
        }
        text.push_str("</reservationSet>");
        if from + 1 < all.len() {
            let _ = write!(text, "<nextToken>from+/={}</nextToken>", from + 1);
        }
        text.push_str("</DescribeInstancesResponse>");
        self.described += 1;
        Answer::Whole(200, text)
    }

    fn object(&self, asked: &Asked) -> Answer {
        match self.objects.get(&asked.path) {
            Some(text) => Answer::Whole(200, text.clone()),
            None => Answer::Whole(
                404,
                "<Error><Code>NoSuchKey</Code><Message>The key does not exist.</Message></Error>".to_owned(),
            ),
        }
    }
}

fn refused(status: u16, code: &str) -> Answer {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code><Message>You are refused.</Message></Error></Errors>\
         <RequestID>8f7724cf</RequestID></Response>"
    );
    Answer::Whole(status, text)
}

impl Speaks for Aws {
    fn answer(&self, asked: &Asked) -> Answer {
        let mut state = lock(&self.0);
        if asked.path.starts_with("/latest/") {
            return state.metadata(asked);
        }
        let service = if asked.method == "POST" { "ec2" } else { "s3" };
        match (state.refusal(service, asked), service) {
            (Some((status, code)), _) => refused(status, &code),
            (None, "ec2") => state.describe(asked),
            (None, _) => state.object(asked),
        }
    }
}
