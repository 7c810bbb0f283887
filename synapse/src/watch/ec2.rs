//! The place that is EC2: the running instances that have a tag, asked for again and again, for EC2 tells nobody of changes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::num::NonZeroU16;
use std::time::Duration;

use async_trait::async_trait;
use nerve::document::{FromValue, Mismatch, Reported, Section, Value};
use nerve::http::{Url, encoded};
use nerve::model::Zone;
use nerve::period::Period;
use nerve::store::random_part;
use serde::{Deserialize, Serialize};

use super::aws::{Access, Aws, Region, Service, Trouble};
use super::place::{Place, Refused, Tell};
use super::server::{Host, Server};

/// Of the query API.
const VERSION: &str = "2016-11-15";
/// So many instances are asked for at a time; EC2 has no larger pages.
const PAGE: usize = 1_000;
/// So many are taken.
const MOST: usize = 20_000;
/// So many tags of an instance are labels; EC2 allows no more than these, nor longer ones (in characters).
const MOST_TAGS: usize = 50;
const MOST_TAG_NAME: usize = 128;
const MOST_TAG_VALUE: usize = 256;
/// Whoever is asked too often is asked again after this at the latest.
const LONGEST: Duration = Duration::from_secs(300);
const INTERVAL: Period = Period::seconds(15);

/// Which instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ec2 {
    /// Where they run.
    #[serde(rename = "ec2")]
    pub region: Region,
    /// The tag that they have.
    pub tag_name: String,
    /// Its value.
    pub tag_value: String,
    /// The port that they listen on: EC2 knows none.
    pub port: NonZeroU16,
    /// Which of their addresses.
    pub address: Address,
    /// They are asked for so often.
    pub interval: Period,
    #[serde(flatten)]
    access: Access,
    #[serde(skip)]
    url: Url,
}

/// An address of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    /// That of its network.
    #[default]
    Private,
    /// That of the Internet.
    Public,
}

impl FromValue for Address {
    fn expected() -> String {
        "\"private\" or \"public\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text() {
            Some("private") => Ok(Self::Private),
            Some("public") => Ok(Self::Public),
            _ => Err(value.wrong_kind(Self::expected())),
        }
    }
}

impl Ec2 {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let region = section.required::<Region>("ec2");
        let tag_name = section.required::<String>("tag_name");
        let tag_value = section.required::<String>("tag_value");
        let port = section.required::<NonZeroU16>("port");
        let address = section.or("address", Address::default());
        let interval = section.or_where("interval", INTERVAL, "1s or more", |interval: &Period| {
            interval.get() >= Duration::from_secs(1)
        });
        let access = Access::read(section);
        let (region, tag_name, tag_value, port, access) = (region?, tag_name?, tag_value?, port?, access?);
        let ec2 = Self::new(region, tag_name, tag_value, port, access)
            .map_err(|(key, why)| section.invalid(key, why, "as EC2 has it"))?;
        Ok(Self { address, interval, ..ec2 })
    }

    /// Validates them; an error is of a key.
    ///
    /// # Errors
    /// The key of what is wrong, and why.
    pub fn new(
        region: Region,
        tag_name: String,
        tag_value: String,
        port: NonZeroU16,
        access: Access,
    ) -> Result<Self, (&'static str, String)> {
        let is_tag =
            |text: &str, most: usize| text.chars().count() <= most && !text.contains(char::is_control);
        if tag_name.is_empty() || !is_tag(&tag_name, MOST_TAG_NAME) {
            return Err(("tag_name", format!("{tag_name:?} is no name of a tag")));
        }
        if !is_tag(&tag_value, MOST_TAG_VALUE) {
            return Err(("tag_value", format!("{tag_value:?} is no value of a tag")));
        }
        let url = Service::Ec2.url(&region, &access).map_err(|why| ("ec2", why))?;
        let (address, interval) = (Address::default(), INTERVAL);
        Ok(Self { region, tag_name, tag_value, port, address, interval, access, url })
    }

    /// The same, asked for so often.
    #[must_use]
    pub fn every(self, interval: Period) -> Self {
        Self { interval, ..self }
    }

    pub(super) fn place(&self) -> String {
        format!("ec2://{}/{}={}", self.region, self.tag_name, self.tag_value)
    }

    /// What is asked, for one page.
    fn form(&self, next: Option<&str>) -> String {
        let mut form = format!("Action=DescribeInstances&Version={VERSION}&MaxResults={PAGE}");
        let filters = [
            (format!("tag:{}", self.tag_name), self.tag_value.as_str()),
            ("instance-state-name".to_owned(), "running"),
        ];
        for (number, (name, value)) in (1..).zip(filters) {
            let (name, value) = (encoded(&name), encoded(value));
            let _ = write!(form, "&Filter.{number}.Name={name}&Filter.{number}.Value.1={value}");
        }
        if let Some(next) = next {
            let _ = write!(form, "&NextToken={}", encoded(next));
        }
        form
    }
}

/// The instances, and who is asked for them.
pub(super) struct Ec2Place {
    config: Ec2,
    aws: Aws,
}

#[async_trait]
impl Place for Ec2Place {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        let usual = self.config.interval.get();
        let mut pause = usual;
        loop {
            pause = match self.look().await {
                Ok((servers, refused)) => {
                    told.found(servers, refused).await;
                    usual
                }
                Err(Trouble::Silent(why)) => return Err(self.failed(&why)),
                // Asking sooner than otherwise would change nothing.
                Err(Trouble::Refused(why)) => {
                    told.failed(self.failed(&why)).await;
                    usual
                }
                Err(Trouble::Busy(why)) => {
                    told.failed(self.failed(&why)).await;
                    (pause * 2).min(LONGEST).max(usual)
                }
            };
            tokio::time::sleep(pause - pause / 8 + random_part(pause / 4)).await;
            told.pace().before_another_look().await;
        }
    }
}

impl Ec2Place {
    pub(super) fn new(config: Ec2) -> Self {
        let aws = Aws::new(Service::Ec2, config.region.clone(), config.url.clone(), &config.access);
        Self { config, aws }
    }

    fn failed(&self, why: &str) -> String {
        format!("ask EC2 for instances at {}: {why}", self.config.url)
    }

    /// All instances, page by page.
    async fn look(&self) -> Result<(Vec<Server>, Vec<Refused>), Trouble> {
        let (mut instances, mut next) = (Vec::new(), None::<String>);
        loop {
            let answer = self.aws.post(self.config.form(next.as_deref())).await?;
            let page = Page::read(&answer.body).map_err(Trouble::Refused)?;
            instances.extend(page.reservations.items.into_iter().flat_map(|one| one.instances.items));
            if instances.len() > MOST {
                let why = format!("more than {MOST} instances have the tag; a narrower one is needed");
                return Err(Trouble::Refused(why));
            }
            match page.next.filter(|next| !next.is_empty()) {
                Some(token) if next.as_ref() == Some(&token) => {
                    return Err(Trouble::Refused("a page of its answer is followed by itself".to_owned()));
                }
                Some(token) => next = Some(token),
                None => return Ok(self.judged(instances)),
            }
        }
    }

    fn judged(&self, mut instances: Vec<Instance>) -> (Vec<Server>, Vec<Refused>) {
        // EC2 lists them in no order.
        instances.sort_by(|one, other| one.id.cmp(&other.id));
        let (mut servers, mut refused) = (Vec::new(), Vec::new());
        for instance in instances.into_iter().filter(|instance| instance.state.name == "running") {
            let (which, address) = match self.config.address {
                Address::Private => ("private", &instance.private_address),
                Address::Public => ("public", &instance.public_address),
            };
            match address.as_deref().filter(|address| !address.is_empty()).map(str::parse) {
                Some(Ok(address)) => {
                    let server = instance.server(Host::Address(address), self.config.port);
                    let region = nerve::model::Region::new(&self.config.region.to_string()).ok();
                    servers.push(Server { region, ..server });
                }
                Some(Err(_)) => refused.push((instance.id, format!("its {which} address is none"))),
                None => refused.push((instance.id, format!("it has no {which} address"))),
            }
        }
        (servers, refused)
    }
}

/// A list of EC2's.
#[derive(Debug, Deserialize)]
struct Items<T> {
    #[serde(rename = "item", default = "Vec::new")]
    items: Vec<T>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

/// A `DescribeInstancesResponse`.
#[derive(Debug, Deserialize)]
struct Page {
    #[serde(rename = "reservationSet")]
    reservations: Items<Reservation>,
    #[serde(rename = "nextToken")]
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Reservation {
    #[serde(rename = "instancesSet", default)]
    instances: Items<Instance>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Instance {
    #[serde(rename = "instanceId")]
    id: String,
    #[serde(rename = "instanceState")]
    state: State,
    #[serde(rename = "privateIpAddress")]
    private_address: Option<String>,
    #[serde(rename = "ipAddress")]
    public_address: Option<String>,
    placement: Placement,
    #[serde(rename = "tagSet")]
    tags: Items<Tag>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Placement {
    #[serde(rename = "availabilityZone")]
    zone: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tag {
    key: String,
    value: String,
}

impl Page {
    fn read(body: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(body).map_err(|_| "its answer is no text".to_owned())?;
        quick_xml::de::from_str(text).map_err(|error| format!("its answer cannot be read: {error}"))
    }
}

impl Instance {
    fn server(self, host: Host, port: NonZeroU16) -> Server {
        let is_short = |tag: &Tag| {
            tag.key.chars().count() <= MOST_TAG_NAME && tag.value.chars().count() <= MOST_TAG_VALUE
        };
        let tags = self.tags.items.into_iter().filter(is_short).take(MOST_TAGS);
        let labels: BTreeMap<String, String> = tags.map(|tag| (tag.key, tag.value)).collect();
        let zone = Zone::new(&self.placement.zone).ok();
        Server { name: Some(self.id), zone, labels, ..Server::at(host, port) }
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;
    use crate::watch::stub::{Written, api};

    const KEYS: &str = "ec2 = \"eu-west-1\"\ntag_name = \"role\"\ntag_value = \"web b\"\nport = 8080\n";

    fn read(text: &str) -> Result<Ec2, String> {
        Document::parse("x", text).unwrap().decode(Ec2::read).map_err(|errors| errors.to_string())
    }

    fn instance(number: u8, state: &str, private: &str, tags: &str) -> String {
        format!(
            "<item><reservationId>r-{number}</reservationId><ownerId>1</ownerId><groupSet/><instancesSet><item><instanceId>i-{number}</instanceId>\
             <instanceState><code>16</code><name>{state}</name></instanceState><privateDnsName>ip</privateDnsName>{private}\
             <ipAddress>198.51.100.{number}</ipAddress><placement><availabilityZone>eu-west-1a</availabilityZone><tenancy>default</tenancy></placement>\
             <tagSet>{tags}</tagSet></item></instancesSet></item>"
        )
    }

    fn page(items: &[String], next: &str) -> (String, String) {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\n  \
             <requestId>r</requestId><reservationSet>{}</reservationSet>{next}</DescribeInstancesResponse>",
            items.concat()
        );
        ("200 OK\r\ncontent-type: text/xml;charset=UTF-8\r\n".to_owned(), body)
    }

    fn private(number: u8) -> String {
        format!("<privateIpAddress>192.0.2.{number}</privateIpAddress>")
    }

    fn place(url: &str, more: &str) -> (Ec2Place, tempfile::NamedTempFile) {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "s3cret\n").unwrap();
        let text = format!(
            "{KEYS}endpoint = \"{url}\"\naccess_key_id = \"AKIDEXAMPLE\"\nsecret_access_key_file = \"{}\"\n{more}",
            secret.path().display()
        );
        (Ec2Place::new(read(&text).unwrap()), secret)
    }

    #[tokio::test]
    async fn running_instances_are_servers_page_by_page() {
        let tag = "<item><key>role</key><value>web b</value></item><item><key>empty</key><value/></item>";
        let answers = vec![
            page(
                &[instance(2, "running", &private(2), tag), instance(3, "stopping", &private(3), "")],
                "<nextToken>a+b=</nextToken>",
            ),
            page(&[instance(1, "running", &private(1), ""), instance(4, "running", "", "")], "<nextToken/>"),
        ];
        let (url, serve) = api(answers).await;
        let (place, _secret) = place(&url, "");
        let (found, asked) = tokio::join!(place.look(), serve);
        let (servers, refused) = found.unwrap();
        let shown: Vec<String> =
            servers.iter().map(|one| format!("{one} {}", one.name.as_deref().unwrap())).collect();
        assert_eq!(shown, ["192.0.2.1:8080 i-1", "192.0.2.2:8080 i-2"]);
        assert_eq!(refused, [("i-4".to_owned(), "it has no private address".to_owned())]);
        let labels =
            BTreeMap::from([("role".to_owned(), "web b".to_owned()), ("empty".to_owned(), String::new())]);
        assert_eq!(
            (servers[1].zone.as_ref().map(Zone::as_str), &servers[1].labels),
            (Some("eu-west-1a"), &labels)
        );
        let form = "Action=DescribeInstances&Version=2016-11-15&MaxResults=1000&Filter.1.Name=tag%3Arole&Filter.1.Value.1=web%20b\
                    &Filter.2.Name=instance-state-name&Filter.2.Value.1=running";
        assert!(
            asked[0].starts_with("POST / HTTP/1.1\r\n") && asked[0].ends_with(&format!("\r\n\r\n{form}")),
            "{}",
            asked[0]
        );
        assert!(asked[1].ends_with(&format!("{form}&NextToken=a%2Bb%3D")), "{}", asked[1]);
        assert!(
            asked.iter().all(|head| head.contains("authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
                && !head.contains("s3cret")),
            "{asked:?}"
        );
    }

    #[tokio::test]
    async fn public_addresses_are_taken_where_they_are_to_be() {
        let (url, serve) = api(vec![page(&[instance(7, "running", &private(7), "")], "")]).await;
        let (place, _secret) = place(&url, "address = \"public\"");
        let (found, _) = tokio::join!(place.look(), serve);
        assert_eq!(found.unwrap().0[0].to_string(), "198.51.100.7:8080");
    }

    #[tokio::test]
    async fn what_is_refused_or_no_answer_of_ec2_is_said_and_nobody_s_silence_ends_the_watch() {
        let error = |status: &str, code: &str| {
            let body = format!(
                "<Response><Errors><Error><Code>{code}</Code><Message>m</Message></Error></Errors></Response>"
            );
            (format!("{status}\r\n"), body)
        };
        let repeats = || page(&[], "<nextToken>a</nextToken>");
        let answers = vec![
            error("503 Unavailable", "RequestLimitExceeded"),
            error("401 Unauthorized", "AuthFailure"),
            ("200 OK\r\n".to_owned(), "<html><body>".to_owned()),
            repeats(),
            repeats(),
            page(&[instance(1, "running", &private(1), "")], ""),
        ];
        let (url, serve) = api(answers).await;
        let (place, _secret) = place(&url, "interval = \"1s\"");
        let written = Written::default();
        let (ended, _) = tokio::join!(place.follow(&written), serve);
        let told = written.lines();
        for (line, said) in
            told.iter().zip(["RequestLimitExceeded", "AuthFailure", "cannot be read", "followed by itself"])
        {
            assert!(
                line.contains(said)
                    && line.contains("ask EC2 for instances at http://127.0.0.1:")
                    && !line.contains("s3cret"),
                "{line}"
            );
        }
        assert_eq!((told.len(), told[4].as_str()), (5, "192.0.2.1:8080 0"));
        assert!(ended.unwrap_err().contains("connect"));
    }

    #[test]
    fn instances_are_named_by_a_tag_and_a_port() {
        let ec2 = read(KEYS).unwrap();
        assert_eq!(
            (ec2.place().as_str(), ec2.url.to_string().as_str()),
            ("ec2://eu-west-1/role=web b", "https://ec2.eu-west-1.amazonaws.com:443")
        );
        for (text, said) in [
            (KEYS.replace("port = 8080\n", ""), "port"),
            (KEYS.replace("eu-west-1", "EU"), "is no region"),
            (KEYS.replace("\"role\"", "\"\""), "no name of a tag"),
            (KEYS.replace("web b", &"x".repeat(257)), "no value of a tag"),
            (format!("{KEYS}address = \"ipv6\""), "private"),
            (format!("{KEYS}interval = \"10ms\""), "1s or more"),
        ] {
            let told = read(&text).unwrap_err();
            assert!(told.contains(said), "{told}");
        }
    }
}
