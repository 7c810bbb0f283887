//! What an operator's directory has: an authority, and while that is replaced the one that is to take its place.
//!
//! The old one vouches for the new one with each certificate that the new one makes: whoever believes the old one alone can verify it. The
//! new one never vouches for the old one, which would be believed for that after it was dropped.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nerve::enrolment::rotation::Rotation;
use nerve::model::Fingerprint;
use rustls::pki_types::CertificateDer;

use super::authority::{Authority, AuthorityError, Files};
use super::spiffe::TrustDomain;

/// The authority.
const ROOT: Files = Files { certificate: "root.pem", key: "root-key.pem" };
/// The one that is to take its place.
const NEXT: Files = Files { certificate: "next.pem", key: "next-key.pem" };

/// An authority, and perhaps the next one.
#[derive(Debug)]
pub struct Authorities {
    root: Authority,
    next: Option<Authority>,
}

/// The directory is of before or after what the other signing nodes go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "nodes are certified by the authority {issuer} now, whose key is not in this node's directory (identity.authority): copy the \
     directory from a node that signs"
)]
pub(super) struct Outdated {
    issuer: Fingerprint,
}

/// Who certifies now, and who is to be believed.
#[derive(Debug, Clone)]
pub(super) struct Plan<'a> {
    pub(super) by: &'a Authority,
    /// The other one, while both are believed.
    pub(super) besides: Option<&'a Authority>,
    /// Who vouches for who certifies: for whoever believes that one alone.
    pub(super) voucher: Option<&'a Authority>,
}

impl Plan<'_> {
    /// Who is to be believed, who certifies first.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        [Some(self.by), self.besides].into_iter().flatten().map(|root| root.root().clone()).collect()
    }

    /// The one that is known by this, if it is believed.
    pub(super) fn believed(&self, root: Fingerprint) -> Option<&Authority> {
        [Some(self.by), self.besides].into_iter().flatten().find(|known| known.fingerprint() == root)
    }

    /// What is shown with a certificate that is made now, for so long: nobody vouches for longer.
    pub(super) fn chain(
        &self,
        certificate: CertificateDer<'static>,
        life: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let vouched = self.voucher.map(|root| root.vouch_for(self.by, life)).transpose()?;
        Ok([Some(certificate), vouched].into_iter().flatten().collect())
    }
}

impl Authorities {
    /// Reads a directory.
    ///
    /// # Errors
    /// Its files are no authority's, or a key is not kept well.
    pub fn load(directory: &Path) -> Result<Self, AuthorityError> {
        if NEXT.certificate_in(directory).exists() {
            let (root, next) = (Authority::read(directory, ROOT)?, Authority::read(directory, NEXT)?);
            if root.trust_domain() != next.trust_domain() {
                let error = format!(
                    "{}: it is the authority of {}, and the one that it is to replace is that of {}",
                    NEXT.certificate_in(directory).display(),
                    next.trust_domain(),
                    root.trust_domain()
                );
                return Err(AuthorityError::Unusable(error));
            }
            // It is to be found out before it is needed.
            root.vouch_for(&next, Duration::ZERO)?;
            return Ok(Self { root, next: Some(next) });
        }
        let root = Authority::read(directory, ROOT).or_else(|error| match error {
            // Its place was taken, and that was broken off.
            AuthorityError::Key { .. } if NEXT.key_in(directory).exists() => {
                let halfway = Files { key: NEXT.key, ..ROOT };
                Authority::read(directory, halfway).map_err(|_| error)
            }
            error => Err(error),
        })?;
        Ok(Self { root, next: None })
    }

    /// Makes the first authority of a mesh, in a directory that has none.
    ///
    /// # Errors
    /// There is one, or the directory cannot be written to.
    pub fn create(directory: &Path, trust_domain: &TrustDomain) -> Result<Self, AuthorityError> {
        Authority::make(directory, ROOT, trust_domain, &format!("Plexus {trust_domain}"))?;
        Self::load(directory)
    }

    /// Makes the authority that is to take the place of the one that is there.
    ///
    /// # Errors
    /// There is such a one already, or none to replace; or the directory cannot be written to.
    pub fn begin(directory: &Path) -> Result<Self, AuthorityError> {
        let trust_domain = Authority::read(directory, ROOT)?.trust_domain().clone();
        // Told from the other one by more than its key.
        let name = format!("Plexus {trust_domain} {:08x}", rand::random::<u32>());
        Authority::make(directory, NEXT, &trust_domain, &name)?;
        Self::load(directory)
    }

    /// Has the next one take the place of the authority, whose key is gone then.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn promote(directory: &Path) -> Result<Self, AuthorityError> {
        rename(&NEXT.certificate_in(directory), &ROOT.certificate_in(directory))?;
        rename(&NEXT.key_in(directory), &ROOT.key_in(directory))?;
        synced(directory)?;
        Self::load(directory)
    }

    /// Removes the next one.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn withdraw(directory: &Path) -> Result<Self, AuthorityError> {
        remove(&NEXT.certificate_in(directory))?;
        remove(&NEXT.key_in(directory))?;
        synced(directory)?;
        Self::load(directory)
    }

    /// The authority.
    #[must_use]
    pub fn root(&self) -> &Authority {
        &self.root
    }

    /// The one that is to take its place.
    #[must_use]
    pub fn next(&self) -> Option<&Authority> {
        self.next.as_ref()
    }

    /// What their certificates are known by.
    pub(super) fn fingerprints(&self) -> (Fingerprint, Option<Fingerprint>) {
        (self.root.fingerprint(), self.next().map(Authority::fingerprint))
    }

    /// Who certifies, as far as the rotation is.
    pub(super) fn plan(&self, rotation: Option<&Rotation>) -> Result<Plan<'_>, Outdated> {
        let Some(rotation) = rotation else {
            return Ok(Plan { by: &self.root, besides: None, voucher: None });
        };
        let known = |root| {
            [Some(&self.root), self.next()].into_iter().flatten().find(|one| one.fingerprint() == root)
        };
        let issuer = rotation.issuer();
        let by = known(issuer).ok_or(Outdated { issuer })?;
        let besides = rotation.other().and_then(known);
        let voucher = besides.filter(|_| issuer == rotation.to);
        Ok(Plan { by, besides, voucher })
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), AuthorityError> {
    match fs::rename(from, to) {
        // An attempt before came so far.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|error| AuthorityError::File { path: to.to_owned(), error }),
    }
}

fn remove(path: &Path) -> Result<(), AuthorityError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|error| AuthorityError::File { path: path.to_owned(), error }),
    }
}

fn synced(directory: &Path) -> Result<(), AuthorityError> {
    let path: PathBuf = directory.to_owned();
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(|error| AuthorityError::File { path, error })
}

#[cfg(test)]
mod tests {
    use nerve::enrolment::rotation::Phase;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_next_one_stands_beside_the_authority_until_it_takes_its_place_or_is_withdrawn() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let first = Authorities::create(directory, &TrustDomain::default()).unwrap().root().fingerprint();
        let both = Authorities::begin(directory).unwrap();
        let second = both.next().unwrap().fingerprint();
        assert_eq!(both.fingerprints(), (first, Some(second)));
        assert!(matches!(Authorities::begin(directory), Err(AuthorityError::Exists(_))));
        assert_eq!(Authorities::withdraw(directory).unwrap().fingerprints(), (first, None));
        let third = Authorities::begin(directory).unwrap().next().unwrap().fingerprint();
        assert_ne!(second, third);
        // As one that was broken off leaves it.
        fs::rename(directory.join("next.pem"), directory.join("root.pem")).unwrap();
        assert_eq!(Authorities::load(directory).unwrap().fingerprints(), (third, None));
        assert_eq!(Authorities::promote(directory).unwrap().fingerprints(), (third, None));
        assert_eq!(names(directory), ["root-key.pem", "root.pem"]);
    }

    #[test]
    fn who_certifies_and_who_is_believed_is_what_the_rotation_says() {
        let directory = tempfile::tempdir().unwrap();
        Authorities::create(directory.path(), &TrustDomain::default()).unwrap();
        let both = Authorities::begin(directory.path()).unwrap();
        let (from, to) = (both.root().fingerprint(), both.next().unwrap().fingerprint());
        let plan = |phase| {
            let plan = both.plan(Some(&Rotation { from, to, phase })).unwrap();
            (plan.by.fingerprint() == to, plan.roots().len(), plan.voucher.is_some())
        };
        assert_eq!(plan(Phase::Trust), (false, 2, false));
        assert_eq!(plan(Phase::Renew), (true, 2, true));
        assert_eq!(plan(Phase::Done), (true, 1, false));
        assert_eq!(plan(Phase::Revert), (false, 2, false));
        assert_eq!(plan(Phase::Aborted), (false, 1, false));
        assert_eq!(both.plan(None).unwrap().roots(), [both.root().root().clone()]);
        // One that was not copied certifies by the old one for as long as that does, and no longer.
        let old = Authorities::withdraw(directory.path()).unwrap();
        let plan = |phase| old.plan(Some(&Rotation { from, to, phase })).map(|plan| plan.roots().len());
        assert_eq!((plan(Phase::Trust), plan(Phase::Renew)), (Ok(1), Err(Outdated { issuer: to })));
    }
}
