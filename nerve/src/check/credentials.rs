//! Who a check logs in as. A password is sent and kept where the definition is kept, and shown nowhere.
//!
//! Keys: `username`, and `password` or `password_file`, whose first line is the password. The file is read at each probe:
//! a password that is exchanged there is used without a word to the agent.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{Liberty, host};
use crate::document::{Reported, Section};
use crate::http::FilePath;

/// What stands in the place of a password where a definition is shown.
const HIDDEN: &str = "(hidden)";

/// Who to log in as. Nobody, where no key is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(super) struct Credentials {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password_file: Option<FilePath>,
}

/// A password. Written out only to be read again.
#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl Credentials {
    /// Reads its keys.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let username = section.given::<String>("username");
        let password = section.given::<String>("password");
        let password_file = section.given::<FilePath>("password_file");
        let (username, password, password_file) = (username?, password?.map(Secret), password_file?);
        if password.is_some() && password_file.is_some() {
            return Err(section.invalid("password_file", "`password` is given too", "one of them"));
        }
        for (key, text) in [("username", username.as_deref()), ("password", password.as_ref().map(|p| &*p.0))]
        {
            if text.is_some_and(|text| text.contains(['\0', '\r', '\n'])) {
                return Err(section.invalid(key, "it has a control character", "a text on one line"));
            }
        }
        Ok(Self { username, password, password_file })
    }

    /// As [`Credentials::read`], where a password is of no use without a user.
    pub(super) fn read_with_user(section: &mut Section<'_>) -> Result<Self, Reported> {
        let read = Self::read(section)?;
        if read.username.is_none() && read.has_password() {
            return Err(section.invalid("username", "there is a password, but nobody whose it is", "a user"));
        }
        Ok(read)
    }

    /// Whoever has a check send the beginning of a file to a server of his own has read it.
    pub(super) fn liberty(&self) -> Option<Liberty> {
        self.password_file.is_some().then_some(Liberty::Files)
    }

    /// Is there a password, here or in a file?
    pub(super) fn has_password(&self) -> bool {
        self.password.is_some() || self.password_file.is_some()
    }

    /// The password, if one is configured.
    pub(super) async fn password(&self) -> Result<Option<String>, String> {
        match (&self.password, &self.password_file) {
            (Some(Secret(password)), _) => Ok(Some(password.clone())),
            (None, Some(file)) => {
                let line = file.first_line().await.inspect_err(|error| host::note(&error.error));
                line.map(Some).map_err(|error| error.to_string())
            }
            (None, None) => Ok(None),
        }
    }

    /// Puts a word in the place of the password.
    pub(super) fn hide(&mut self) {
        if let Some(Secret(password)) = &mut self.password {
            HIDDEN.clone_into(password);
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> Result<Credentials, String> {
        let document = Document::parse("x", text).unwrap();
        document.decode(Credentials::read_with_user).map_err(|errors| errors.to_string())
    }

    #[tokio::test]
    async fn a_password_is_the_first_line_of_its_file_as_it_is_now() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let credentials = read(&format!("username = \"a\"\npassword_file = \"{}\"", path.display())).unwrap();
        let missing = credentials.password().await.unwrap_err();
        assert!(missing.contains("password: No such file"), "{missing}");
        for secret in ["first", "second"] {
            std::fs::write(&path, format!("{secret}\nrest\n")).unwrap();
            assert_eq!(credentials.password().await, Ok(Some(secret.to_owned())));
        }
        std::fs::write(&path, vec![b'x'; 1 << 21]).unwrap();
        assert!(credentials.password().await.unwrap_err().contains("more than"));
    }

    #[test]
    fn a_password_is_not_shown() {
        let mut credentials = read("username = \"a\"\npassword = \"s3cret\"").unwrap();
        assert!(!format!("{credentials:?}").contains("s3cret"));
        credentials.hide();
        assert!(!serde_json::to_string(&credentials).unwrap().contains("s3cret"));
    }

    #[test]
    fn mistakes_name_the_key() {
        for (text, expected) in [
            (
                "username = \"a\"\npassword = \"b\"\npassword_file = \"/c\"",
                "password_file: `password` is given too",
            ),
            ("username = \"a\"\npassword_file = \"c\"", "password_file: c is not absolute"),
            ("password = \"b\"", "username: there is a password"),
            ("username = \"a\\nb\"", "username: it has a control character"),
        ] {
            let shown = read(text).unwrap_err();
            assert!(shown.contains(expected), "{text}: {shown}");
        }
    }
}
