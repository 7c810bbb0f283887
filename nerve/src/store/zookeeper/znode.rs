//! Where our keys and values lie in ZooKeeper. Pure.
//!
//! ```text
//! instances/web/a:8080  →  /plexus/v1/instances/web/a:8080=     the entry: its data is the value
//!                          /plexus/v1/instances/web             a directory: its data is nothing
//! ```
//!
//! A segment is a level, so that a directory of ours is a subtree of ZooKeeper's: one recursive watch covers it, and a
//! listing asks for its children and nothing else. An entry's name ends with `=`, which no other name does: something may stand
//! at `a` and below `a`, and a leased entry (an ephemeral node, which has no children) never has to be a directory too.
//! Directories are container nodes, which ZooKeeper removes some time after their last child.
//!
//! What ZooKeeper has no room for in a name (its `PathUtils`: control characters, `.`, parts of Unicode), and what has a
//! meaning here, is written as `%` and two hexadecimal digits a byte.

use std::fmt::Write;

use crate::store::Path;

/// What ends the name of an entry.
const ENTRY: char = '=';

/// Is `prefix` a path that ZooKeeper takes? It is used as it is written.
pub(super) fn check_prefix(prefix: &str) -> Result<(), &'static str> {
    let mut segments = prefix.split('/').skip(1).peekable();
    if segments.peek() == Some(&"zookeeper") {
        return Err("ZooKeeper keeps /zookeeper for itself: write a path such as /plexus/v1");
    }
    if segments.any(|segment| encode(segment) != segment) {
        return Err(
            "ZooKeeper's names here are of printable ASCII without `%` and `=`, and neither `.` nor \
            `..`: write a path such as /plexus/v1",
        );
    }
    Ok(())
}

/// The znode of the entry at `path`.
pub(super) fn entry(prefix: &str, path: &Path) -> String {
    format!("{}{ENTRY}", directory(prefix, path))
}

/// The znode of a directory.
pub(super) fn directory(prefix: &str, path: &Path) -> String {
    let mut znode = prefix.to_owned();
    for segment in path.as_str().split('/').filter(|segment| !segment.is_empty()) {
        znode.push('/');
        znode.push_str(&encode(segment));
    }
    znode
}

/// Is a child of that name an entry?
pub(super) fn is_entry(name: &str) -> bool {
    name.ends_with(ENTRY)
}

/// The path of an entry's znode, or `None` where nobody of us wrote it.
pub(super) fn path_of(prefix: &str, znode: &str) -> Option<Path> {
    let below = znode.strip_prefix(prefix)?.strip_prefix('/')?.strip_suffix(ENTRY)?;
    let segments: Option<Vec<_>> = below.split('/').map(decode).collect();
    let path = Path::new(&segments?.join("/")).ok()?;
    // One spelling a path: what reads as the same and is written otherwise is not ours.
    (entry(prefix, &path) == znode).then_some(path)
}

/// The znode that `znode` stands in.
pub(super) fn parent(znode: &str) -> &str {
    znode.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The directories from `prefix` down to `directory`, both of them too.
pub(super) fn chain<'a>(prefix: &str, directory: &'a str) -> Vec<&'a str> {
    let ends = directory.match_indices('/').map(|(at, _)| at).chain([directory.len()]);
    ends.filter(|end| *end >= prefix.len()).map(|end| &directory[..end]).collect()
}

fn encode(segment: &str) -> String {
    let relative = matches!(segment, "." | "..");
    let mut name = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        let plain = matches!(byte, 0x20..=0x7e) && byte != b'%' && byte != b'=' && !relative;
        if plain {
            name.push(char::from(byte));
        } else {
            // Writing to a text cannot fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name
}

fn decode(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Path {
        Path::new(text).unwrap()
    }

    #[test]
    fn entries_and_directories_stand_where_the_documentation_says() {
        for (text, znode) in [
            ("nodes/n1", "/p/v1/nodes/n1="),
            ("instances/web/a:8080", "/p/v1/instances/web/a:8080="),
            ("vips/fd00::1", "/p/v1/vips/fd00::1="),
            ("a=b/..", "/p/v1/a%3Db/%2E%2E="),
            ("100%/é", "/p/v1/100%25/%C3%A9="),
        ] {
            assert_eq!(entry("/p/v1", &path(text)), znode);
            assert_eq!(path_of("/p/v1", znode), Some(path(text)));
        }
        assert_eq!(directory("/p", &Path::root()), "/p");
        assert_eq!(directory("/p", &path("instances/web")), "/p/instances/web");
        assert_eq!(parent("/p/instances/web"), "/p/instances");
        assert_eq!(chain("/p/v1", "/p/v1/a/b"), ["/p/v1", "/p/v1/a", "/p/v1/a/b"]);
        assert_eq!(chain("/p/v1", "/p/v1"), ["/p/v1"]);
    }

    #[test]
    fn what_we_did_not_write_is_no_entry() {
        for znode in
            ["/p/a", "/p/a/b", "/p/=", "/p/a//b=", "/p/%zz=", "/p/%3=", "/p/%61=", "/p/%ff=", "/q/a=", "/p="]
        {
            assert_eq!(path_of("/p", znode), None, "{znode}");
        }
    }

    #[test]
    fn a_prefix_that_zookeeper_refuses_is_refused_before_it_is_asked() {
        assert_eq!(check_prefix("/plexus/v1"), Ok(()));
        for prefix in ["/zookeeper", "/zookeeper/a", "/a/.", "/a/..", "/a=", "/é", "/a%41"] {
            assert!(check_prefix(prefix).is_err(), "{prefix}");
        }
    }

    proptest! {
        #[test]
        fn every_path_has_one_znode_and_reads_back(segments in proptest::collection::vec("[^/]{1,12}", 1..5)) {
            let text = segments.join("/");
            let znode = entry("/p", &path(&text));
            prop_assert!(znode.bytes().all(|byte| matches!(byte, 0x20..=0x7e)));
            prop_assert!(is_entry(&znode) && !is_entry(&directory("/p", &path(&text))));
            prop_assert_eq!(path_of("/p", &znode), Some(path(&text)));
        }
    }
}
