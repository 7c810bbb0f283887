//! The weights of places of which each node takes one: a mapping of their names to whole numbers, in a file of this machine or in an object
//! of S3, read again and again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nerve::document::{Document, FromValue, Mismatch, Reported, Section, Value};
use nerve::http::{Url, encoded};
use nerve::period::Period;
use nerve::store::random_part;
use serde::{Serialize, Serializer};

use super::aws::{Access, Aws, Region, Service, Trouble};

/// A file is read so often.
const TICK: Duration = Duration::from_secs(5);
/// An object is read so often.
const INTERVAL: Period = Period::seconds(30);
/// The largest object, in bytes.
const MOST: usize = 64 * 1024;

const OBJECT_KEYS: [&str; 3] = ["toggle_s3", "toggle_region", "toggle_interval"];

/// Where the weights are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Toggle {
    /// A file of YAML or JSON.
    #[serde(rename = "toggle_file")]
    File(PathBuf),
    /// An object of S3.
    #[serde(untagged)]
    Object(Box<Object>),
}

/// An object of S3, of YAML or JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Object {
    /// Which.
    #[serde(rename = "toggle_s3")]
    pub name: ObjectName,
    /// Where its bucket is.
    #[serde(rename = "toggle_region")]
    pub region: Region,
    /// It is read so often.
    #[serde(rename = "toggle_interval")]
    pub interval: Period,
    #[serde(flatten)]
    access: Access,
    #[serde(skip)]
    url: Url,
}

/// `s3://bucket/key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    bucket: String,
    key: String,
}

impl Toggle {
    /// Reads its keys, of which there may be none. Paths begin at `base`.
    pub(super) fn read(section: &mut Section<'_>, base: &Path) -> Result<Option<Self>, Reported> {
        let file = section.given::<PathBuf>("toggle_file");
        for key in OBJECT_KEYS {
            section.allow(key);
        }
        if !OBJECT_KEYS.into_iter().any(|key| section.has(key)) {
            return Ok(file?.map(|file| Self::File(base.join(file))));
        }
        let object = Object::read(section);
        if file?.is_some() {
            return Err(section.invalid("toggle_s3", "there is a `toggle_file`, too", "one of them"));
        }
        object.map(Box::new).map(Self::Object).map(Some)
    }

    /// For whoever reads it.
    pub(super) fn open(&self) -> Weights {
        match self {
            Self::File(file) => Weights::File(file.clone()),
            Self::Object(object) => {
                let aws = Aws::new(Service::S3, object.region.clone(), object.url.clone(), &object.access);
                Weights::Object(Box::new(aws), object.clone())
            }
        }
    }
}

impl Object {
    fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let name = section.required::<ObjectName>("toggle_s3");
        let region = section.required::<Region>("toggle_region");
        let interval = section.or_where("toggle_interval", INTERVAL, "1s or more", |interval: &Period| {
            interval.get() >= Duration::from_secs(1)
        });
        let access = Access::read(section);
        Self::new(name?, region?, interval, access?)
            .map_err(|why| section.invalid("toggle_region", why, Region::expected()))
    }

    /// The object of that name.
    ///
    /// # Errors
    /// The region has no S3.
    pub fn new(name: ObjectName, region: Region, interval: Period, access: Access) -> Result<Self, String> {
        let url = Service::S3.url(&region, &access)?;
        Ok(Self { name, region, interval, access, url })
    }
}

/// Who reads them.
pub(super) enum Weights {
    File(PathBuf),
    Object(Box<Aws>, Box<Object>),
}

impl Weights {
    /// As they are now.
    pub(super) async fn read(&self) -> Result<BTreeMap<String, u32>, String> {
        match self {
            Self::File(file) => {
                let path = file.clone();
                let read = tokio::task::spawn_blocking(move || nerve::document::read_text(&path));
                let text =
                    read.await.map_err(|error| error.to_string())?.map_err(|errors| errors.to_string())?;
                parse(&file.display().to_string(), &text)
            }
            Self::Object(aws, object) => {
                // By its path, not by a host of its own: a bucket's name may have dots, which no certificate has.
                let key: Vec<String> = object.name.key.split('/').map(encoded).collect();
                let path = format!("/{}/{}", object.name.bucket, key.join("/"));
                let answer = aws.get(&path).await.map_err(|trouble| match trouble {
                    Trouble::Silent(why) | Trouble::Refused(why) | Trouble::Busy(why) => {
                        format!("ask {} for {}: {why}", object.url, object.name)
                    }
                })?;
                if answer.body.len() > MOST {
                    return Err(format!("{} has more than {MOST} bytes", object.name));
                }
                let text =
                    std::str::from_utf8(&answer.body).map_err(|_| format!("{} is no text", object.name))?;
                parse(&object.name.to_string(), text)
            }
        }
    }

    /// They are read again after this.
    pub(super) fn pause(&self) -> Duration {
        match self {
            Self::File(_) => TICK,
            Self::Object(_, object) => {
                let interval = object.interval.get();
                interval - interval / 8 + random_part(interval / 4)
            }
        }
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.display().fmt(f),
            Self::Object(_, object) => object.name.fmt(f),
        }
    }
}

fn parse(place: &str, text: &str) -> Result<BTreeMap<String, u32>, String> {
    let value = Document::parse_yaml_value(place, text).map_err(|errors| errors.to_string())?;
    let value = serde_json::to_value(value).map_err(|error| error.to_string())?;
    serde_json::from_value(value).map_err(|_| format!("{place} is no mapping of names to whole numbers"))
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no s3://bucket/key");
        let (bucket, key) =
            text.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let is_bucket = (3..=63).contains(&bucket.len()) && bucket.chars().all(is_name);
        if !is_bucket || key.is_empty() || key.len() > 1024 || key.contains(char::is_control) {
            return Err(wrong());
        }
        Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

impl Serialize for ObjectName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromValue for ObjectName {
    fn expected() -> String {
        "an object of S3 such as \"s3://bucket/weights.yaml\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text(&Self::expected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::stub::api;

    fn read(text: &str) -> Result<Option<Toggle>, String> {
        let read = |section: &mut Section<'_>| Toggle::read(section, Path::new("/etc"));
        Document::parse("x", text).unwrap().decode(read).map_err(|errors| errors.to_string())
    }

    #[tokio::test]
    async fn weights_are_a_mapping_of_yaml() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("w.yaml");
        let weights = Toggle::File(file.clone()).open();
        assert!(weights.read().await.is_err());
        std::fs::write(&file, "a: 3\nb: 1\n").unwrap();
        assert_eq!(weights.read().await.unwrap()["a"], 3);
        for bad in ["a: x", "- a", "", "a: -1"] {
            std::fs::write(&file, bad).unwrap();
            assert!(weights.read().await.is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn an_object_is_asked_for_with_a_signature_and_what_it_is_not_is_said() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "s3cret\n").unwrap();
        let missing = "<Error><Code>NoSuchKey</Code><Message>It does not exist.</Message></Error>".to_owned();
        let answers = vec![
            ("200 OK\r\n".to_owned(), "---\nnew: 1\n".to_owned()),
            ("404 Not Found\r\n".to_owned(), missing),
            ("200 OK\r\n".to_owned(), format!("a: 1\n#{}", "x".repeat(MOST))),
        ];
        let (url, serve) = api(answers).await;
        let text = format!(
            "toggle_s3 = \"s3://a.bucket/dir/w ä.yaml\"\ntoggle_region = \"eu-west-1\"\nendpoint = \"{url}\"\naccess_key_id = \"AKIDEXAMPLE\"\n\
             secret_access_key_file = \"{}\"",
            secret.path().display()
        );
        let weights = read(&text).unwrap().unwrap().open();
        let asks = async { (weights.read().await, weights.read().await, weights.read().await) };
        let ((first, second, third), asked) = tokio::join!(asks, serve);
        assert_eq!(first.unwrap(), BTreeMap::from([("new".to_owned(), 1)]));
        let why = second.unwrap_err();
        assert!(
            why.contains("NoSuchKey: It does not exist.") && why.contains("s3://a.bucket/dir/w ä.yaml"),
            "{why}"
        );
        assert!(third.unwrap_err().contains("more than"));
        assert!(asked[0].starts_with("GET /a.bucket/dir/w%20%C3%A4.yaml HTTP/1.1\r\n"), "{}", asked[0]);
        let signed = "SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=";
        assert!(asked[0].contains(signed) && !asked[0].contains("s3cret"), "{}", asked[0]);
    }

    #[test]
    fn weights_are_in_one_place() {
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("toggle_file = \"w.yaml\"").unwrap(), Some(Toggle::File("/etc/w.yaml".into())));
        let object = "toggle_s3 = \"s3://bucket/w.yaml\"\ntoggle_region = \"eu-west-1\"\n";
        let Some(Toggle::Object(read_object)) = read(object).unwrap() else { panic!("an object") };
        assert_eq!(read_object.url.to_string(), "https://s3.eu-west-1.amazonaws.com:443");
        for (text, said) in [
            (format!("{object}toggle_file = \"w\""), "`toggle_file`, too"),
            (object.replace("s3://", "https://"), "is no s3://bucket/key"),
            (object.replace("bucket/w.yaml", "bucket/"), "is no s3://bucket/key"),
            (object.replace("bucket", "b/../c"), "is no s3://bucket/key"),
            ("toggle_s3 = \"s3://bucket/w\"".to_owned(), "toggle_region"),
            ("toggle_region = \"eu-west-1\"".to_owned(), "toggle_s3"),
        ] {
            let told = read(&text);
            assert!(told.as_ref().is_err_and(|told| told.contains(said)), "{text}: {told:?}");
        }
    }
}
