//! Which addresses of this node's subnets are given to whom.
//!
//! One file an owner, below the state directory, is the truth; what is in memory follows from it. A file is written beside its
//! place and renamed before its addresses are told to anybody, and removed after the kernel has forgotten them: a program that is
//! killed between any two steps gives no address twice. The disk is not waited for: what a failure of the whole machine
//! takes away, it takes from the containers as well.
//!
//! One process at a time has the directory (`Owned`): an agent that takes over has it once the one before it has let go, and reads
//! only then what is true. Until then it knows what was true a moment ago.
//!
//! Addresses are given in turn, so that one that was given back is used again as late as possible: peers and clients may still
//! know whom it belonged to.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nerve::model::{NetworkName, Prefix};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// So many owners fit on a node; what asks for more is out of control.
const MOST: usize = 65_536;
const SUFFIX: &str = "json";

/// The right to change what is kept in a directory. It ends with the process, however that ends.
#[derive(Debug)]
pub(super) struct Owned {
    _locked: File,
}

impl Owned {
    /// `None`: another process has it.
    pub(super) fn take(directory: &Path) -> Result<Option<Self>, LedgerError> {
        let failed = |source| LedgerError::Io { file: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let opened = File::open(directory).map_err(failed)?;
        match opened.try_lock() {
            Ok(()) => Ok(Some(Self { _locked: opened })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// Who has what.
#[derive(Debug)]
pub(super) struct Ledger<T> {
    directory: PathBuf,
    records: BTreeMap<String, Record<T>>,
    holders: HashMap<(NetworkName, IpAddr), String>,
    /// The address of each subnet that was given last.
    last: HashMap<(NetworkName, Prefix), u64>,
}

/// What an owner has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record<T> {
    pub(super) network: NetworkName,
    /// One of each family of the network.
    pub(super) addresses: Vec<IpAddr>,
    /// What the owner itself keeps there.
    #[serde(flatten)]
    pub(super) details: T,
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub(super) enum LedgerError {
    /// All of the subnet are taken.
    #[error(
        "every address of {0} is taken; detach what is not needed, or make the network with longer ranges for its nodes (--subnet-len)"
    )]
    Full(Prefix),
    /// Somebody has the address that was asked for.
    #[error("{address} is {holder}'s")]
    Taken {
        /// What was asked for.
        address: IpAddr,
        /// Who has it.
        holder: String,
    },
    /// It is not one that a container here can have.
    #[error(
        "{address} is no address for a container here: those lie in {subnet}, whose first two and last are not given"
    )]
    Outside {
        /// What was asked for.
        address: IpAddr,
        /// Where it should be.
        subnet: Prefix,
    },
    /// The owner has something already.
    #[error("{0} has addresses already")]
    Known(String),
    /// An owner's name is a file's.
    #[error(
        "{0:?} cannot be the name of an owner: 1 to 128 letters, digits, '-', '_', '.' and '@' that do not begin with a '.'"
    )]
    Name(String),
    /// There are too many.
    #[error("{MOST} owners have addresses on this node; detach what is not needed")]
    TooMany,
    /// It cannot be written down.
    #[error("cannot keep {file}: {source}", file = file.display())]
    Io {
        /// Where.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl<T: Serialize + DeserializeOwned> Ledger<T> {
    /// Reads what was kept in `directory`, which need not be there. A file that cannot be read is left alone and told: an address
    /// in it may be given once more.
    pub(super) fn open(directory: PathBuf) -> Result<(Self, Vec<String>), LedgerError> {
        let failed = |source| LedgerError::Io { file: directory.clone(), source };
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let mut problems = Vec::new();
        let (records, holders, last) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        let mut ledger = Self { directory: directory.clone(), records, holders, last };
        for path in ledger.files()? {
            let Some(owner) = owner(&path) else { continue };
            match read(&path) {
                Ok(record) => ledger.note(owner, record),
                Err(error) => problems.push(unreadable(&path, &error)),
            }
        }
        Ok((ledger, problems))
    }

    /// Removes what was begun and not finished: nobody was told of it. Only for the owner of the directory.
    pub(super) fn remove_unfinished(&self) -> Result<(), LedgerError> {
        for file in self.files()?.into_iter().filter(|path| owner(path).is_none()) {
            if let Err(source) = std::fs::remove_file(&file) {
                return Err(LedgerError::Io { file, source });
            }
        }
        Ok(())
    }

    /// What an owner has.
    pub(super) fn get(&self, owner: &str) -> Option<&Record<T>> {
        self.records.get(owner)
    }

    /// Who has an address.
    pub(super) fn holder(&self, network: &NetworkName, address: IpAddr) -> Option<&str> {
        self.holders.get(&(network.clone(), address)).map(String::as_str)
    }

    /// Every owner, with what it has.
    pub(super) fn all(&self) -> impl Iterator<Item = (&String, &Record<T>)> {
        self.records.iter()
    }

    /// Gives an owner an address of each of the subnets: `asked` ones, or the next that are free. What else is kept may follow from
    /// them.
    pub(super) fn give(
        &mut self,
        owner: &str,
        network: &NetworkName,
        subnets: &[Prefix],
        asked: &[IpAddr],
        details: impl FnOnce(&[IpAddr]) -> T,
    ) -> Result<&Record<T>, LedgerError> {
        if !is_name(owner) {
            return Err(LedgerError::Name(owner.chars().take(200).collect()));
        }
        if self.records.contains_key(owner) {
            return Err(LedgerError::Known(owner.to_owned()));
        }
        if self.records.len() >= MOST {
            return Err(LedgerError::TooMany);
        }
        let mut addresses = Vec::with_capacity(subnets.len());
        for subnet in subnets {
            let asked = asked.iter().copied().find(|address| address.is_ipv4() == subnet.is_ipv4());
            addresses.push(match asked {
                Some(address) => self.check(network, *subnet, address)?,
                None => self.next(network, *subnet).ok_or(LedgerError::Full(*subnet))?,
            });
        }
        if let Some(stray) = asked.iter().find(|address| !addresses.contains(address)) {
            let subnet = subnets.first().copied().unwrap_or(Prefix::from(*stray));
            return Err(LedgerError::Outside { address: *stray, subnet });
        }
        let details = details(&addresses);
        let record = Record { network: network.clone(), addresses, details };
        self.write(owner, &record)?;
        for (subnet, address) in subnets.iter().zip(&record.addresses) {
            self.last.insert((network.clone(), *subnet), place(*subnet, *address));
        }
        self.note(owner.to_owned(), record);
        // It was just put there.
        self.records.get(owner).ok_or_else(|| LedgerError::Known(owner.to_owned()))
    }

    /// Changes what an owner keeps there; nothing happens where there is no such owner.
    pub(super) fn amend(&mut self, owner: &str, change: impl FnOnce(&mut T)) -> Result<(), LedgerError>
    where
        T: Clone,
    {
        let Some(record) = self.records.get(owner) else { return Ok(()) };
        let mut amended = record.clone();
        change(&mut amended.details);
        self.write(owner, &amended)?;
        self.records.insert(owner.to_owned(), amended);
        Ok(())
    }

    /// Takes everything back from an owner. Nothing may use the addresses any more.
    pub(super) fn take_back(&mut self, owner: &str) -> Result<Option<Record<T>>, LedgerError> {
        if !self.records.contains_key(owner) {
            return Ok(None);
        }
        let file = self.file(owner);
        match std::fs::remove_file(&file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LedgerError::Io { file, source });
            }
            _ => {}
        }
        Ok(self.forget(owner))
    }

    fn forget(&mut self, owner: &str) -> Option<Record<T>> {
        let record = self.records.remove(owner)?;
        for address in &record.addresses {
            self.holders.remove(&(record.network.clone(), *address));
        }
        Some(record)
    }

    fn files(&self) -> Result<Vec<PathBuf>, LedgerError> {
        let failed = |source| LedgerError::Io { file: self.directory.clone(), source };
        let entries = std::fs::read_dir(&self.directory).map_err(failed)?;
        entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
    }

    fn note(&mut self, owner: String, record: Record<T>) {
        for address in &record.addresses {
            self.holders.insert((record.network.clone(), *address), owner.clone());
        }
        self.records.insert(owner, record);
    }

    fn check(&self, network: &NetworkName, subnet: Prefix, address: IpAddr) -> Result<IpAddr, LedgerError> {
        let (first, end) = places(subnet);
        if !subnet.contains(address) || !(first..end).contains(&place(subnet, address)) {
            return Err(LedgerError::Outside { address, subnet });
        }
        match self.holders.get(&(network.clone(), address)) {
            Some(holder) => Err(LedgerError::Taken { address, holder: holder.clone() }),
            None => Ok(address),
        }
    }

    /// The next free address after the one that was given last.
    pub(super) fn next(&self, network: &NetworkName, subnet: Prefix) -> Option<IpAddr> {
        let (first, end) = places(subnet);
        let count = end.checked_sub(first).filter(|count| *count > 0)?;
        let last = self.last.get(&(network.clone(), subnet)).copied();
        let start = last.map_or(0, |last| (last + 1).saturating_sub(first)) % count;
        // One more than are taken is always enough.
        let tries = count.min(self.holders.len() as u64 + 1);
        (0..tries)
            .filter_map(|step| subnet.nth(first + (start + step) % count))
            .find(|address| !self.holders.contains_key(&(network.clone(), *address)))
    }

    fn file(&self, owner: &str) -> PathBuf {
        self.directory.join(format!("{owner}.{SUFFIX}"))
    }

    fn write(&self, owner: &str, record: &Record<T>) -> Result<(), LedgerError> {
        let file = self.file(owner);
        write(&file, record).map_err(|source| LedgerError::Io { file, source })
    }
}

/// Whose file it is; `None`: one that was never finished.
fn owner(path: &Path) -> Option<String> {
    path.extension().filter(|extension| *extension == SUFFIX)?;
    Some(path.file_stem()?.to_str()?.to_owned())
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Record<T>> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!(
        "{} cannot be read ({error}): its addresses may be given to others; remove it, or detach and attach its owner",
        path.display()
    )
}

fn write(file: &Path, record: &impl Serialize) -> io::Result<()> {
    let beside = file.with_extension("new");
    let mut new = File::create(&beside)?;
    new.write_all(&serde_json::to_vec(record)?)?;
    std::fs::rename(&beside, file)
}

/// The places of a subnet that containers may have, counted from its first address: not the network's own, not the gateway's, not
/// that of IPv4's broadcast. Of an IPv6 subnet, more than anybody counts to.
fn places(subnet: Prefix) -> (u64, u64) {
    let size = subnet.size();
    (2, if subnet.is_ipv4() { size.saturating_sub(1) } else { size })
}

fn place(subnet: Prefix, address: IpAddr) -> u64 {
    match (subnet.network(), address) {
        (IpAddr::V4(first), IpAddr::V4(address)) => {
            u64::from(address.to_bits().wrapping_sub(first.to_bits()))
        }
        (IpAddr::V6(first), IpAddr::V6(address)) => {
            u64::try_from(address.to_bits().wrapping_sub(first.to_bits())).unwrap_or(u64::MAX)
        }
        // Of another family: nowhere.
        _ => u64::MAX,
    }
}

fn is_name(owner: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    (1..=128).contains(&owner.len()) && !owner.starts_with('.') && owner.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    type Plain = BTreeMap<String, String>;

    fn network() -> NetworkName {
        NetworkName::new("default").unwrap()
    }

    fn open(directory: &Path) -> Ledger<Plain> {
        let (ledger, problems) = Ledger::open(directory.to_owned()).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        ledger
    }

    fn subnets(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn give(ledger: &mut Ledger<Plain>, owner: &str, subnets: &[Prefix]) -> Result<Vec<IpAddr>, String> {
        let given = ledger.give(owner, &network(), subnets, &[], |_| Plain::new());
        given.map(|record| record.addresses.clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_owner_has_an_address_of_each_family_until_it_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let both = subnets(&["10.42.3.0/24", "fd42:0:0:3::/64"]);
        let mut ledger = open(directory.path());
        let details = |given: &[IpAddr]| Plain::from([("first".to_owned(), given[0].to_string())]);
        let given = ledger.give("web", &network(), &both, &[], details).unwrap().addresses.clone();
        assert_eq!(given, ["10.42.3.2".parse::<IpAddr>().unwrap(), "fd42:0:0:3::2".parse().unwrap()]);
        assert!(give(&mut ledger, "web", &both).unwrap_err().contains("already"));
        let mut again = open(directory.path());
        assert_eq!(again.get("web").unwrap().details["first"], "10.42.3.2");
        assert_eq!(again.take_back("web").unwrap().unwrap().addresses, given);
        assert!(again.take_back("web").unwrap().is_none());
        assert_eq!(open(directory.path()).all().count(), 0);
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_if_it_is_free_and_of_here() {
        let directory = tempfile::tempdir().unwrap();
        let subnet = subnets(&["10.42.3.0/29"]);
        let mut ledger = open(directory.path());
        let mut ask = |owner: &str, address: &str| {
            let asked = [address.parse().unwrap()];
            let given = ledger.give(owner, &network(), &subnet, &asked, |_| Plain::new());
            given.map(|record| record.addresses[0].to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(ask("a", "10.42.3.6").unwrap(), "10.42.3.6");
        assert_eq!(ask("b", "10.42.3.6").unwrap_err(), "10.42.3.6 is a's");
        for outside in ["10.42.3.0", "10.42.3.1", "10.42.3.7", "10.42.4.2", "fd00::2"] {
            assert!(
                ask("c", outside).unwrap_err().contains("is no address for a container here"),
                "{outside}"
            );
        }
        assert!(ask("../c", "10.42.3.5").unwrap_err().contains("cannot be the name"));
    }

    #[test]
    fn a_subnet_that_is_full_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = open(directory.path());
        let subnet = subnets(&["10.42.3.0/30"]);
        give(&mut ledger, "a", &subnet).unwrap();
        assert!(
            give(&mut ledger, "b", &subnet).unwrap_err().contains("every address of 10.42.3.0/30 is taken")
        );
        ledger.take_back("a").unwrap();
        give(&mut ledger, "b", &subnet).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_and_stops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.json"), "{").unwrap();
        std::fs::write(directory.path().join("b.new"), "{").unwrap();
        let (ledger, problems) = Ledger::<Plain>::open(directory.path().to_owned()).unwrap();
        assert_eq!((ledger.all().count(), problems.len()), (0, 1));
        assert!(problems[0].contains("a.json cannot be read"), "{problems:?}");
        ledger.remove_unfinished().unwrap();
        assert!(directory.path().join("a.json").exists() && !directory.path().join("b.new").exists());
    }

    #[test]
    fn who_takes_over_has_the_directory_once_the_one_before_has_let_go() {
        let directory = tempfile::tempdir().unwrap();
        let subnet = subnets(&["10.42.3.0/24"]);
        let owned = Owned::take(directory.path()).unwrap().unwrap();
        assert!(Owned::take(directory.path()).unwrap().is_none());
        let given = give(&mut open(directory.path()), "a", &subnet).unwrap();
        drop(owned);
        let _owned = Owned::take(directory.path()).unwrap().unwrap();
        assert_ne!(give(&mut open(directory.path()), "b", &subnet).unwrap(), given);
    }

    #[test]
    fn what_an_owner_keeps_there_can_change() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = open(directory.path());
        let given = give(&mut ledger, "a", &subnets(&["10.42.3.0/24"])).unwrap();
        let change = |kept: &mut Plain| {
            kept.insert("is".to_owned(), "done".to_owned());
        };
        ledger.amend("a", change).unwrap();
        ledger.amend("nobody", change).unwrap();
        let again = open(directory.path());
        let record = again.get("a").unwrap();
        assert_eq!((record.details["is"].as_str(), &record.addresses), ("done", &given));
        assert_eq!(again.all().count(), 1);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Give(u8),
        TakeBack(u8),
        Killed,
        KilledBeforeRename(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..12_u8).prop_map(Step::Give),
            3 => (0..12_u8).prop_map(Step::TakeBack),
            1 => Just(Step::Killed),
            1 => (0..12_u8).prop_map(Step::KilledBeforeRename),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Wherever the program is killed: no address is anybody's twice, and nobody loses one that it was told.
        #[test]
        fn no_address_is_given_twice(steps in proptest::collection::vec(step(), 1..60)) {
            let directory = tempfile::tempdir().unwrap();
            let subnet = subnets(&["10.42.3.0/28"]);
            let mut ledger = open(directory.path());
            let mut told: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Give(owner) => {
                        let owner = format!("c{owner}");
                        if let Ok(given) = give(&mut ledger, &owner, &subnet) {
                            prop_assert!(told.insert(owner, given).is_none());
                        } else {
                            prop_assert!(told.contains_key(&owner));
                        }
                    }
                    Step::TakeBack(owner) => {
                        let owner = format!("c{owner}");
                        let taken = ledger.take_back(&owner).unwrap().map(|record| record.addresses);
                        prop_assert_eq!(taken, told.remove(&owner));
                    }
                    Step::Killed => ledger = open(directory.path()),
                    Step::KilledBeforeRename(owner) => {
                        std::fs::write(directory.path().join(format!("c{owner}.new")), "half").unwrap();
                        ledger = open(directory.path());
                    }
                }
                let all: BTreeMap<String, Vec<IpAddr>> =
                    ledger.all().map(|(owner, record)| (owner.clone(), record.addresses.clone())).collect();
                prop_assert_eq!(&all, &told);
                let distinct: HashSet<IpAddr> = told.values().flatten().copied().collect();
                prop_assert_eq!(distinct.len(), told.len());
            }
        }

        /// One that was given back is given again after all others.
        #[test]
        fn an_address_is_used_again_as_late_as_possible(kept in 0..10_usize) {
            let directory = tempfile::tempdir().unwrap();
            let subnet = subnets(&["10.42.3.0/28"]);
            let mut ledger = open(directory.path());
            for n in 0..kept {
                give(&mut ledger, &format!("kept{n}"), &subnet).unwrap();
            }
            let mut given = Vec::new();
            for n in 0..13 - kept {
                let owner = format!("c{n}");
                given.push(give(&mut ledger, &owner, &subnet).unwrap()[0]);
                ledger.take_back(&owner).unwrap();
            }
            let distinct: HashSet<IpAddr> = given.iter().copied().collect();
            prop_assert_eq!(distinct.len(), given.len());
            prop_assert_eq!(give(&mut ledger, "again", &subnet).unwrap()[0], given[0]);
        }
    }
}
